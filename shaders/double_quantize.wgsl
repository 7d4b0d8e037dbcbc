// Absmax values to one byte each: offset = their mean, then the signed 8-bit dynamic map over absmax - offset in blocks
// of 256 (QLoRA, Dettmers et al. 2023).
//
// The mean is summed exactly, in integers of 96 bits that hold every absmax as a multiple of 2^-64 of the largest one's
// binade: the result depends neither on the order of summation nor on the device.

import index
import exact

struct Params {
    group_base: u32,
    group_end: u32,
    len: u32, // blocks of the weight
    partials: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> absmax: array<f32>; // [len]
@group(0) @binding(2) var<storage, read> status: array<u32>; // [4]; the last: bits of the largest absmax
@group(0) @binding(3) var<storage, read_write> sums: array<u32>; // [partials, 3], the lowest word first
@group(0) @binding(4) var<storage, read_write> nested: array<f32>; // [257 + len / 256]: offset, map, nested absmax
@group(0) @binding(5) var<storage, read_write> codes: array<u32>; // [len / 4]

// The same memory serves sums (three words per thread) and magnitudes (one).
var<workgroup> scratch: array<u32, 192>;

struct Wide {
    low: u32,
    middle: u32,
    high: u32,
}

fn add(a: Wide, b: Wide) -> Wide {
    let low = a.low + b.low;
    let carry = select(0u, 1u, low < a.low);
    let sum = a.middle + b.middle;
    let middle = sum + carry;
    let carries = select(0u, 1u, sum < a.middle) + select(0u, 1u, middle < carry);
    return Wide(low, middle, a.high + b.high + carries);
}

// A normal number's mantissa, at bit 40 where its exponent is the largest one.
fn fixed_point(bits: u32, largest: u32) -> Wide {
    let mantissa = ((bits & 0x7fffffu) | 0x800000u) << 8u;
    let shift = (largest >> 23u) - (bits >> 23u);
    if (bits < 0x800000u || shift >= 64u) {
        return Wide(0u, 0u, 0u);
    }
    if (shift >= 32u) {
        return Wide(mantissa >> (shift - 32u), 0u, 0u);
    }
    return Wide(select(mantissa << ((32u - shift) & 31u), 0u, shift == 0u), mantissa >> shift, 0u);
}

fn scratch_at(i: u32) -> Wide {
    return Wide(scratch[i], scratch[64u + i], scratch[128u + i]);
}

// The sum over the 64 threads, valid in the first.
fn reduce(v: Wide, index: u32) -> Wide {
    var sum = v;
    for (var half = 32u; half > 0u; half /= 2u) {
        scratch[index] = sum.low;
        scratch[64u + index] = sum.middle;
        scratch[128u + index] = sum.high;
        workgroupBarrier();
        if (index < half) {
            sum = add(sum, scratch_at(index + half));
        }
        workgroupBarrier();
    }
    return sum;
}

// sums[g] = sum of absmax[4096 g .. 4096 g + 4095]
@compute @workgroup_size(64)
fn partial_sums(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    var sum = Wide(0u, 0u, 0u);
    for (var t = 0u; t < 64u; t++) {
        let i = g * 4096u + t * 64u + index;
        if (i < params.len) {
            sum = add(sum, fixed_point(bitcast<u32>(absmax[i]), status[3]));
        }
    }
    sum = reduce(sum, index);
    if (index == 0u) {
        sums[3u * g] = sum.low;
        sums[3u * g + 1u] = sum.middle;
        sums[3u * g + 2u] = sum.high;
    }
}

// sum / len as a float, to nearest even; `exponent` is the largest absmax's.
fn mean_of(sum: Wide, exponent: u32) -> f32 {
    // Long division, bit by bit; the quotient is at most the largest absmax and so fits 64 bits.
    var high = 0u;
    var low = 0u;
    var rest = 0u;
    for (var t = 0u; t < 96u; t++) {
        let bit = 95u - t;
        let word = select(select(sum.low, sum.middle, bit >= 32u), sum.high, bit >= 64u);
        rest = (rest << 1u) | ((word >> (bit % 32u)) & 1u);
        let one = rest >= params.len;
        rest -= select(0u, params.len, one);
        high = (high << 1u) | (low >> 31u);
        low = (low << 1u) | select(0u, 1u, one);
    }
    if ((high | low) == 0u) {
        return 0.0;
    }
    // The leading bit comes to the top of `high`.
    var top = 63u;
    while (high < 0x80000000u) {
        high = (high << 1u) | (low >> 31u);
        low <<= 1u;
        top -= 1u;
    }
    let tail = high & 255u;
    let below = select(0u, 1u, (low | rest) != 0u);
    var mantissa = high >> 8u;
    if (tail > 128u || (tail == 128u && (below == 1u || (mantissa & 1u) == 1u))) {
        mantissa += 1u;
    }
    if (exponent + top < 64u) {
        return 0.0;
    }
    // A mantissa of 2^24 carries into the exponent.
    return bitcast<f32>(((exponent + top - 63u) << 23u) + (mantissa - 0x800000u));
}

// nested[0] = mean of all absmax
@compute @workgroup_size(64)
fn offset(@builtin(local_invocation_index) index: u32) {
    if (params.group_base >= params.group_end) {
        return;
    }
    var sum = Wide(0u, 0u, 0u);
    for (var i = index; i < params.partials; i += 64u) {
        sum = add(sum, Wide(sums[3u * i], sums[3u * i + 1u], sums[3u * i + 2u]));
    }
    sum = reduce(sum, index);
    if (index == 0u) {
        nested[0] = mean_of(sum, status[3] >> 23u);
    }
}

// The number of the map value nearest to s; a tie takes the even one.
fn encode(s: f32) -> u32 {
    // first = how many values lie below s
    var first = 0u;
    for (var step = 128u; step > 0u; step /= 2u) {
        first += select(0u, step, nested[first + step] < s);
    }
    // 255 values have been searched, and nothing lies above the last one.
    let upper = first;
    let lower = max(upper, 1u) - 1u;
    let middle = (nested[1u + upper] + nested[1u + lower]) * 0.5;
    let up = s > middle || (s == middle && upper % 2u == 0u);
    return select(lower, upper, up);
}

// absmax - offset; 0 beyond the end.
fn distance(b: u32) -> f32 {
    if (b >= params.len) {
        return 0.0;
    }
    return absmax[b] - nested[0];
}

// codes[b] = encode((absmax[b] - offset) * (1 / nested absmax)); a group is a block of 256, one thread per word of four codes
@compute @workgroup_size(64)
fn absmax_codes(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let word = g * 64u + index;
    let first = 4u * word;
    let d = vec4<f32>(distance(first), distance(first + 1u), distance(first + 2u), distance(first + 3u));
    // Magnitudes compare as their bits do.
    let bits = bitcast<vec4<u32>>(d) & vec4<u32>(0x7fffffffu);
    var most = max(max(bits.x, bits.y), max(bits.z, bits.w));
    for (var half = 32u; half > 0u; half /= 2u) {
        scratch[index] = most;
        workgroupBarrier();
        if (index < half) {
            most = max(most, scratch[index + half]);
        }
        workgroupBarrier();
    }
    if (index == 0u) {
        // A subnormal maximum counts as 0.
        scratch[0] = select(most, 0u, most < 0x800000u);
        nested[257u + g] = bitcast<f32>(scratch[0]);
    }
    workgroupBarrier();
    let spread = bitcast<f32>(scratch[0]);
    if (first >= params.len) {
        return;
    }
    var code = vec4<u32>(0u);
    if (spread > 0.0) {
        // From 2^126 on the reciprocal is subnormal: both sides are scaled down.
        let shrink = select(1.0, 0.0625, spread >= 8.507059173023462e37);
        let s = d * shrink * divide(1.0, spread * shrink);
        code = vec4<u32>(encode(s.x), encode(s.y), encode(s.z), encode(s.w));
        // What pads the last word is zero.
        let inside = vec4<u32>(first, first + 1u, first + 2u, first + 3u) < vec4<u32>(params.len);
        code = select(vec4<u32>(0u), code, inside) << vec4<u32>(0u, 8u, 16u, 24u);
    }
    codes[word] = (code.x | code.y) | (code.z | code.w);
}
