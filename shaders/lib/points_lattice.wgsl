// The points of QuIP#'s E8P: the nearest one to a vector, and the one of a code.
import lattice_point

fn odd(lo: vec4<f32>, hi: vec4<f32>) -> bool {
    let negative = (bitcast<vec4<u32>>(lo) >> vec4<u32>(31u)) ^ (bitcast<vec4<u32>>(hi) >> vec4<u32>(31u));
    return ((negative.x ^ negative.y) ^ (negative.z ^ negative.w)) == 1u;
}

// Half of |p|² - |x - s - p|² + |x - s|² for a pattern p of magnitudes with the signs of x - s, an even number of them
// flipped against the pattern's own.
fn score(a: Eight, p: Eight, flips: bool) -> f32 {
    let lo = a.lo * p.lo;
    let hi = a.hi * p.hi;
    let sum = lo + hi;
    let least = min(lo, hi);
    let dot = (sum.x + sum.y) + (sum.z + sum.w);
    let cheapest = min(min(least.x, least.y), min(least.z, least.w));
    return dot - select(0.0, 2.0 * cheapest, flips);
}

// The code of pattern i and a shift with the signs that suit y = x - shift best.
fn signed_code(y: Eight, i: u32, up: bool) -> u32 {
    let p = Eight(abs(patterns[2u * i]), abs(patterns[2u * i + 1u]));
    var signs = 0u;
    var least = 3.0e38;
    var cheapest = 0u;
    for (var t = 0u; t < 8u; t++) {
        let v = select(y.lo, y.hi, t >= 4u)[t % 4u];
        let product = abs(v) * select(p.lo, p.hi, t >= 4u)[t % 4u];
        signs |= (bitcast<u32>(v) >> 31u) << t;
        if (product < least) {
            least = product;
            cheapest = t;
        }
    }
    if (odd(y.lo, y.hi) != (patterns[2u * i + 1u].w < 0.0)) {
        signs ^= 1u << cheapest;
    }
    // Against the pattern, the last element of which may be negative; the code leaves the last sign out.
    return (i << 8u) | select(0u, 128u, up) | (signs & 127u);
}

// The code of a nearest point.
fn nearest(x: Eight) -> u32 {
    let y0 = Eight(x.lo + 0.25, x.hi + 0.25);
    let y1 = Eight(x.lo - 0.25, x.hi - 0.25);
    let a0 = Eight(abs(y0.lo), abs(y0.hi));
    let a1 = Eight(abs(y1.lo), abs(y1.hi));
    let odd0 = odd(y0.lo, y0.hi);
    let odd1 = odd(y1.lo, y1.hi);
    let half0 = 0.5 * (dot(y0.lo, y0.lo) + dot(y0.hi, y0.hi));
    let half1 = 0.5 * (dot(y1.lo, y1.lo) + dot(y1.hi, y1.hi));
    var best = -3.0e38;
    var at = 0u;
    for (var i = 0u; i < 256u; i++) {
        let lo = patterns[2u * i];
        let hi = patterns[2u * i + 1u];
        let p = Eight(lo, abs(hi));
        let half = 0.5 * (dot(p.lo, p.lo) + dot(p.hi, p.hi));
        let negative = hi.w < 0.0;
        let s0 = score(a0, p, odd0 != negative) - half - half0;
        let s1 = score(a1, p, odd1 != negative) - half - half1;
        if (s0 > best) {
            best = s0;
            at = 2u * i;
        }
        if (s1 > best) {
            best = s1;
            at = 2u * i + 1u;
        }
    }
    if (at % 2u == 1u) {
        return signed_code(y1, at / 2u, true);
    }
    return signed_code(y0, at / 2u, false);
}

// The point of a code.
fn point(code: u32) -> Eight {
    let pattern = 2u * (code >> 8u);
    return lattice_point(code, patterns[pattern], patterns[pattern + 1u]);
}
