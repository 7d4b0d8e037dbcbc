// A row's own scale: its largest magnitude, given as bits, becomes code 127. Below 2^-118 quotients would not be normal
// numbers: such rows count as zeros.
const SMALLEST: u32 = 0x04800000u;

fn row_scale(most: u32) -> vec2<f32> {
    if (most < SMALLEST) {
        return vec2<f32>();
    }
    let absmax = bitcast<f32>(most);
    return vec2<f32>(divide(absmax, 127.0), divide(127.0, absmax));
}
