// Numbers by fours: rows of a multiple of four.
alias Element = vec4<f32>;

const WIDTH = 4u;

fn total(v: Element) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}
