// Which keys a query may see, for a cache: `segments` is [1] and holds the position of the first query; all of the cache
// up to a query's own position is one segment.
fn first_position() -> u32 {
    return segments[0];
}

fn key_count() -> u32 {
    return min(segments[0] + params.seq, params.capacity);
}

fn segment(sequence: u32, position: u32) -> u32 {
    return 1u;
}
