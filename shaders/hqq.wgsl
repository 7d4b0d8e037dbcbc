// Half-quadratic quantization: the zero points of affine codes by a sparse model of the error. One thread per block; all
// blocks stop together. Specialised by `source` (how the numbers lie), BITS, and HALF (scale and zero point as f16).

import index
import half_bits

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32, // elements here, a range of whole blocks (the tensor's last may be short)
    block: u32, // elements in a block
    blocks: u32, // of this range; in `decide` of the tensor
    first_block: u32, // of this range in the tensor
    first_scale: u32, // and in `scales`
    words: u32, // of `packed`
    p: f32, // of the norm that the error is to be small in
    kappa: f32, // beta grows by it
    round_zero: u32, // whether the first zero points are whole numbers
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> codes: array<Word>; // the numbers: [len]
// Codes are round(x * state.x + state.y).
@group(0) @binding(2) var<storage, read_write> state: array<vec2<f32>>; // [all blocks]: 1 / scale, zero point
// How many numbers are not finite; -; ~(the first block whose range the scales cannot hold); -
@group(0) @binding(3) var<storage, read_write> status: array<atomic<u32>>; // [4]
@group(0) @binding(4) var<storage, read_write> errors: array<f32>; // [all blocks]
@group(0) @binding(5) var<storage, read_write> control: array<f32>; // [3]: beta, the least error so far, whether to stop
@group(0) @binding(6) var<storage, read_write> scales: array<u32>; // [blocks]: f32 scale, f32 zero point; or two f16
@group(0) @binding(7) var<storage, read_write> packed: array<u32>; // [words]

import source

const MAX_CODE: f32 = f32((1u << BITS) - 1u);
// Codes of 8 bits are stored as -128..127.
const OFFSET: f32 = select(0.0, 128.0, BITS == 8u);

fn block_end(block: u32) -> u32 {
    return min(block * params.block + params.block, params.len);
}

// The range of a block becomes that of the codes, as the hqq package does it: at most 20000 codes to 1, and constant
// blocks keep their value in the zero point. Halves beyond 1024 hold no fractions: there the range is widened to hold 0.
@compute @workgroup_size(64)
fn initial(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let block = g * 64u + lane;
    if (g >= params.group_end || block >= params.blocks) {
        return;
    }
    decode_init(lane);
    var low = code_at(block * params.block);
    var high = low;
    for (var i = block * params.block; i < block_end(block); i++) {
        let x = code_at(i);
        if ((bitcast<u32>(x) & 0x7fffffffu) >= 0x7f800000u) {
            atomicAdd(&status[0], 1u);
        }
        low = min(low, x);
        high = max(high, x);
    }
    var inverse = inverse_scale(low, high);
    if (HALF == 1u && abs(low * inverse) > 1024.0) {
        low = min(low, 0.0);
        high = max(high, 0.0);
        inverse = inverse_scale(low, high);
    }
    // 2^127 is where the double of a half range overflows; 65504 is the largest half.
    if (0.5 * high - 0.5 * low >= 1.7014118346046923e38 || (HALF == 1u && inverse < 1.0 / 65504.0)) {
        atomicMax(&status[2], ~(params.first_block + block));
    }
    var zero = -low * inverse;
    if (params.round_zero == 1u) {
        zero = round(zero);
    }
    state[params.first_block + block] = vec2<f32>(inverse, zero);
}

fn inverse_scale(low: f32, high: f32) -> f32 {
    if (high - low <= 1e-4) {
        return 1.0;
    }
    return min(MAX_CODE / (high - low), 2e4);
}

fn code_of(x: f32, s: vec2<f32>) -> f32 {
    return clamp(round(x * s.x + s.y), 0.0, MAX_CODE);
}

// e = shrink(x - (q - zero) / inverse), zero = mean(q - (x - e) * inverse)
@compute @workgroup_size(64)
fn improve(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let block = g * 64u + lane;
    if (g >= params.group_end || block >= params.blocks || control[2] != 0.0) {
        return;
    }
    decode_init(lane);
    let at = params.first_block + block;
    let s = state[at];
    let start = block * params.block;
    let scale = 1.0 / s.x;
    let inverse_beta = 1.0 / control[0];
    var error = 0.0;
    var sum = 0.0;
    for (var i = start; i < block_end(block); i++) {
        let x = code_at(i);
        let q = code_of(x, s);
        let d = x - (q - s.y) * scale;
        let m = abs(d);
        error += m;
        // Magnitudes near zero shrink to it, as the power outgrows them.
        let e = sign(d) * max(m - inverse_beta * pow(max(m, 1e-30), params.p - 1.0), 0.0);
        sum += q - (x - e) * s.x;
    }
    errors[at] = error;
    state[at].y = sum / f32(block_end(block) - start);
}

var<workgroup> partial: array<f32, 256>;

// Stops where the error of all blocks did not fall; the last step counts.
@compute @workgroup_size(256)
fn decide(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    var sum = 0.0;
    for (var b = lane; b < params.blocks; b += 256u) {
        sum += errors[b];
    }
    partial[lane] = sum;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) {
            partial[lane] += partial[lane + half];
        }
    }
    if (lane == 0u) {
        if (partial[0] < control[1]) {
            control[1] = partial[0];
        } else {
            control[2] = 1.0;
        }
        control[0] *= params.kappa;
    }
}

// Scales as they are stored; the codes will be those of the rounded ones.
@compute @workgroup_size(64)
fn finish(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let block = g * 64u + lane;
    if (g >= params.group_end || block >= params.blocks) {
        return;
    }
    let s = state[params.first_block + block];
    let at = params.first_scale + block;
    if (HALF == 1u) {
        // By integers: some compilers take unpack2x16float(pack2x16float(v)) for v.
        let bits = narrow4(vec4<u32>(bitcast<u32>(1.0 / s.x), bitcast<u32>(s.y - OFFSET), 0u, 0u));
        let word = bits.x | (bits.y << 16u);
        let stored = unpack2x16float(word);
        scales[at] = word;
        state[params.first_block + block] = vec2<f32>(1.0 / stored.x, stored.y + OFFSET);
    } else {
        scales[2u * at] = bitcast<u32>(1.0 / s.x);
        scales[2u * at + 1u] = bitcast<u32>(s.y - OFFSET);
    }
}

// 32 codes per thread, which fill BITS words.
@compute @workgroup_size(64)
fn encode(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    let thread = g * 64u + lane;
    if (g >= params.group_end) {
        return;
    }
    decode_init(lane);
    var word = BITS * thread;
    var held = 0u;
    var filled = 0u;
    for (var i = 32u * thread; i < 32u * thread + 32u; i++) {
        var code = 0u;
        if (i < params.len) {
            code = u32(code_of(code_at(i), state[params.first_block + i / params.block]));
            code ^= select(0u, 128u, BITS == 8u);
        }
        // Of two nibbles the first is the high one.
        held |= code << (filled ^ select(0u, 4u, BITS == 4u));
        filled += BITS;
        if (filled >= 32u) {
            if (word < params.words) {
                packed[word] = held;
            }
            word++;
            filled -= 32u;
            held = code >> (BITS - filled);
        }
    }
}
