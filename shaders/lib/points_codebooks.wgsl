// Sums of a vector of one code book and one of another: a near one to a vector, and the one of a code.

// Half of |x - v|² - |x|² for vector v of the table.
fn far(x: Eight, v: u32) -> f32 {
    let lo = patterns[2u * v];
    let hi = patterns[2u * v + 1u];
    return 0.5 * (dot(lo, lo) + dot(hi, hi)) - dot(x.lo, lo) - dot(x.hi, hi);
}

fn less(x: Eight, v: u32) -> Eight {
    return Eight(x.lo - patterns[2u * v], x.hi - patterns[2u * v + 1u]);
}

// The vector nearest to x among the 256 from `first` on.
fn closest(x: Eight, first: u32) -> u32 {
    var best = 3.0e38;
    var at = first;
    for (var v = first; v < first + 256u; v++) {
        let d = far(x, v);
        if (d < best) {
            best = d;
            at = v;
        }
    }
    return at;
}

// Beam search: the four best vectors of the first book, the best of the second for each, and each book once more for the
// best pair.
fn nearest(x: Eight) -> u32 {
    var d = vec4<f32>(3.0e38);
    var at = vec4<u32>(0u);
    for (var v = 0u; v < 256u; v++) {
        let e = far(x, v);
        if (e < d.x) {
            d = vec4<f32>(e, d.xyz);
            at = vec4<u32>(v, at.xyz);
        } else if (e < d.y) {
            d = vec4<f32>(d.x, e, d.yz);
            at = vec4<u32>(at.x, v, at.yz);
        } else if (e < d.z) {
            d = vec4<f32>(d.xy, e, d.z);
            at = vec4<u32>(at.xy, v, at.z);
        } else if (e < d.w) {
            d.w = e;
            at.w = v;
        }
    }
    var best = 3.0e38;
    var a = 0u;
    var b = 256u;
    for (var beam = 0u; beam < 4u; beam++) {
        let rest = less(x, at[beam]);
        let second = closest(rest, 256u);
        let total = d[beam] + far(rest, second);
        if (total < best) {
            best = total;
            a = at[beam];
            b = second;
        }
    }
    a = closest(less(x, b), 0u);
    b = closest(less(x, a), 256u);
    return a | ((b - 256u) << 8u);
}

// The point of a code.
fn point(code: u32) -> Eight {
    let a = 2u * (code & 255u);
    let b = 512u + 2u * (code >> 8u);
    return Eight(patterns[a] + patterns[b], patterns[a + 1u] + patterns[b + 1u]);
}
