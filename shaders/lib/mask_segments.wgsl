// Which keys a query may see, for whole sequences: `segments` is [batch, seq], and query i sees key j where j <= i,
// i - j < window, and both carry the same nonzero segment; of a query MASKED_TOKEN aside.
fn first_position() -> u32 {
    return 0u;
}

fn key_count() -> u32 {
    return params.seq;
}

fn key_slot(position: u32) -> u32 {
    return position;
}

fn segment(sequence: u32, position: u32) -> u32 {
    return segments[sequence * params.seq + position];
}
