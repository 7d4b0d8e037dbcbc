// Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011), and dropout out of them. The same seed, draw, layer and
// element give the same number in every kernel and pass.

fn multiply_high(a: u32, b: u32) -> u32 {
    let al = a & 0xffffu;
    let ah = a >> 16u;
    let bl = b & 0xffffu;
    let bh = b >> 16u;
    let low = al * bl;
    let cross = al * bh;
    let other = ah * bl;
    let middle = (low >> 16u) + (cross & 0xffffu) + (other & 0xffffu);
    return ah * bh + (cross >> 16u) + (other >> 16u) + (middle >> 16u);
}

fn philox(counter: vec4<u32>, key: vec2<u32>) -> vec4<u32> {
    var c = counter;
    var k = key;
    for (var round = 0u; round < 10u; round++) {
        let high0 = multiply_high(0xd2511f53u, c.x);
        let high1 = multiply_high(0xcd9e8d57u, c.z);
        c = vec4<u32>(high1 ^ c.y ^ k.x, 0xcd9e8d57u * c.z, high0 ^ c.w ^ k.y, 0xd2511f53u * c.x);
        k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}

// Factors of elements 4 * quad .. 4 * quad + 3: 0 with probability threshold / 2^32, else scale.
// key: seed, draw
fn dropout_scale4(key: vec2<u32>, layer: u32, threshold: u32, scale: f32, quad: u32) -> vec4<f32> {
    let bits = philox(vec4<u32>(quad, layer, 0u, 0u), key);
    return select(vec4<f32>(0.0), vec4<f32>(scale), bits >= vec4<u32>(threshold));
}

// The factor of one element.
fn dropout_scale(key: vec2<u32>, layer: u32, threshold: u32, scale: f32, element: u32) -> f32 {
    let four = dropout_scale4(key, layer, threshold, scale, element / 4u);
    let pair = select(four.xy, four.zw, (element & 2u) != 0u);
    return select(pair.x, pair.y, (element & 1u) != 0u);
}
