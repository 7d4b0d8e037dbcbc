// Sizes, copied: in a loop drivers on the processor read a uniform lane by lane.
@group(0) @binding(0) var<uniform> bound: Params;

var<private> params: Params;

fn load_params() {
    params = bound;
}
