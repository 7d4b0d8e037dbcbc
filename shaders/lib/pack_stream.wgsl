// Codes of BITS bits one after the other: 32 of them are BITS words, so a thread makes 32.
const EIGHTS: u32 = 4u;

fn encode_at(n: u32) {
    var words: array<u32, BITS>;
    for (var e = 0u; e < EIGHTS; e++) {
        let c = encode8(EIGHTS * n + e, source8(EIGHTS * n + e));
        for (var t = 0u; t < 8u; t++) {
            let code = select(c.lo, c.hi, t >= 4u)[t % 4u];
            let at = (8u * e + t) * BITS;
            words[at / 32u] |= code << (at % 32u);
            if (at % 32u + BITS > 32u) {
                words[at / 32u + 1u] |= code >> (32u - at % 32u);
            }
        }
    }
    let end = params.len / 32u * BITS + (params.len % 32u * BITS + 31u) / 32u;
    for (var k = 0u; k < BITS; k++) {
        if (n * BITS + k < end) {
            codes[n * BITS + k] = words[k];
        }
    }
}
