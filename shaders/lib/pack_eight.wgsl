// Eight codes per thread: a whole number of words.
import store8

const EIGHTS: u32 = 1u;

fn encode_at(n: u32) {
    let c = encode8(n, source8(n));
    store8(n, c.lo, c.hi);
}
