// Codes of BITS bits one after the other, element i in bits BITS * i ..; `value` gives what a code stands for.
import value

alias Word = u32;

fn decode_init(lane: u32) {
    value_init(lane);
}

// At least `count` <= 28 bits from bit `at` of word `word` on; what lies above is left over.
fn bits_from(word: u32, at: u32, count: u32) -> u32 {
    let w = word + at / 32u;
    let s = at % 32u;
    var v = codes[w] >> s;
    if (s + count > 32u) {
        v |= codes[w + 1u] << (32u - s);
    }
    return v;
}

fn code4(word: u32, at: u32) -> vec4<f32> {
    let v = bits_from(word, at, 4u * BITS);
    return value4((vec4<u32>(v) >> vec4<u32>(0u, BITS, 2u * BITS, 3u * BITS)) & vec4<u32>((1u << BITS) - 1u));
}

// Eight codes are BITS bytes; in bytes no position overflows.
fn decode8(i: u32) -> Eight {
    let byte = i * BITS;
    let at = 8u * (byte % 4u);
    return Eight(code4(byte / 4u, at), code4(byte / 4u, at + 4u * BITS));
}

fn code_at(i: u32) -> f32 {
    let byte = i / 8u * BITS;
    let v = bits_from(byte / 4u, 8u * (byte % 4u) + i % 8u * BITS, BITS);
    return value4(vec4<u32>(v & ((1u << BITS) - 1u))).x;
}
