// Numbers one by one: rows of any length.
alias Element = f32;

const WIDTH = 1u;

fn total(v: Element) -> f32 {
    return v;
}
