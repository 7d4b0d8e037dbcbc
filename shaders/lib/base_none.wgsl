// The result replaces what was there.
fn base(at: u32) -> Out {
    return Out();
}
