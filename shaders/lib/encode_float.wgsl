// Plain floats, rounded to nearest even; no scales.
import narrow

fn store_scale(block: u32, low: f32, high: f32) {}

fn encode8(word: u32, x: array<vec4<u32>, 2>) -> Codes {
    let lo = narrow4(x[0]);
    let hi = narrow4(x[1]);
    let past = max(lo & vec4<u32>(INFINITE), hi & vec4<u32>(INFINITE));
    if (max(max(past.x, past.y), max(past.z, past.w)) == INFINITE) {
        for (var t = 0u; t < 8u; t++) {
            if ((select(lo, hi, t >= 4u)[t % 4u] & INFINITE) == INFINITE) {
                atomicAdd(&status[0], 1u);
                atomicMax(&status[1], ~(params.first + 8u * word + t));
            }
        }
    }
    return Codes(lo, hi);
}
