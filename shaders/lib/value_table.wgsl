// A code stands for an entry of a table.
import table

fn value_init(lane: u32) {
    table_init(lane);
}

fn value4(code: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(table[code.x], table[code.y], table[code.z], table[code.w]);
}
