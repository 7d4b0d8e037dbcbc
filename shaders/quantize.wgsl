// Numbers to codes, in blocks that run flat over the tensor: first the range of every block and the scale it gives, then
// the codes. Specialised by `source` (how the numbers lie), `encoding` (the scheme), `pack` (how codes lie), RAGGED (blocks
// may end inside eight elements) and LANES (threads that share a block in `block_scales`, a power of two up to 256). Ranges
// are integers' business where it matters: NaN and infinity are found
// on the bits.

import index

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32, // elements here, a range of whole blocks (the tensor's last may be short)
    block: u32, // elements in a block
    blocks: u32,
    first_block: u32, // where this range begins in `scales`
    first: u32, // the number of its first element in the tensor
}

@group(0) @binding(0) var<uniform> params: Params;
// How many numbers are not finite; ~(the first of them); ~(the first block whose range overflows); bits of the largest
// absmax.
@group(0) @binding(3) var<storage, read_write> status: array<atomic<u32>>; // [4]
@group(0) @binding(4) var<storage, read_write> codes: array<u32>; // [len / codes in a word]

// Codes of eight elements.
struct Codes {
    lo: vec4<u32>,
    hi: vec4<u32>,
}

// The block of element `i` of this range; what pads its end belongs to the last one.
fn block_of(i: u32) -> u32 {
    return min(i / params.block, params.blocks - 1u);
}

import source
import encoding
import pack

var<workgroup> lows: array<f32, 256>;
var<workgroup> highs: array<f32, 256>;

// Largest magnitude of eight numbers, as bits: infinity and NaN come out at or above 0x7f800000.
fn magnitude(x: array<vec4<u32>, 2>) -> u32 {
    let m = max(x[0] & vec4<u32>(0x7fffffffu), x[1] & vec4<u32>(0x7fffffffu));
    return max(max(m.x, m.y), max(m.z, m.w));
}

fn least(x: array<vec4<u32>, 2>) -> f32 {
    let m = min(bitcast<vec4<f32>>(x[0]), bitcast<vec4<f32>>(x[1]));
    return min(min(m.x, m.y), min(m.z, m.w));
}

fn greatest(x: array<vec4<u32>, 2>) -> f32 {
    let m = max(bitcast<vec4<f32>>(x[0]), bitcast<vec4<f32>>(x[1]));
    return max(max(m.x, m.y), max(m.z, m.w));
}

// Names the first number of a range that is not finite.
fn report(first_word: u32, end_word: u32, block: u32) {
    for (var word = first_word; word < end_word; word += LANES) {
        let x = of_block(word, block);
        for (var t = 0u; t < 8u; t++) {
            let bits = select(x[0], x[1], t >= 4u)[t % 4u] & 0x7fffffffu;
            if (bits >= 0x7f800000u) {
                atomicAdd(&status[0], 1u);
                atomicMax(&status[1], ~(params.first + 8u * word + t));
            }
        }
    }
}

// Eight elements, those of other blocks as zeros.
fn of_block(word: u32, block: u32) -> array<vec4<u32>, 2> {
    var x = source8(word);
    if (RAGGED == 1u) {
        let at = 8u * word + vec4<u32>(0u, 1u, 2u, 3u);
        let none = vec4<u32>(0u);
        x[0] = select(none, x[0], at / params.block == vec4<u32>(block));
        x[1] = select(none, x[1], (at + 4u) / params.block == vec4<u32>(block));
    }
    return x;
}

// low, high = the range of a block, widened to hold 0; the scale follows from them.
@compute @workgroup_size(256)
fn block_scales(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let block = g * (256u / LANES) + index / LANES;
    let lane = index % LANES;
    var first = 0u;
    var end = 0u;
    if (block < params.blocks) {
        let start = block * params.block;
        first = start / 8u + lane;
        end = (start + min(params.block, params.len - start) + 7u) / 8u;
    }
    var low = 0.0;
    var high = 0.0;
    var worst = 0u;
    for (var word = first; word < end; word += LANES) {
        let x = of_block(word, block);
        low = min(low, least(x));
        high = max(high, greatest(x));
        worst = max(worst, magnitude(x));
    }
    if (worst >= 0x7f800000u) {
        report(first, end, block);
    }
    if (LANES > 1u) {
        lows[index] = low;
        highs[index] = high;
        for (var half = LANES / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if (lane < half) {
                lows[index] = min(lows[index], lows[index + half]);
                highs[index] = max(highs[index], highs[index + half]);
            }
        }
        low = lows[index];
        high = highs[index];
    }
    if (lane == 0u && block < params.blocks) {
        store_scale(block, low, high);
    }
}

// EIGHTS times eight codes per thread.
@compute @workgroup_size(256)
fn encode(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let g = group_index(wg, counts);
    let n = g * 256u + index;
    if (g < params.group_end && 8u * EIGHTS * n < params.len) {
        encode_at(n);
    }
}
