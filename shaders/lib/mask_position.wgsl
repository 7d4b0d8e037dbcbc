// Which keys a query may see, for a cache: `segments` is [1] and holds the position of the first query; all of the cache
// up to a query's own position is one segment. With a window position p lies in row p modulo the capacity.
fn first_position() -> u32 {
    return segments[0];
}

fn key_count() -> u32 {
    let count = segments[0] + params.seq;
    return select(count, min(count, params.capacity), params.window == 0xffffffffu);
}

fn key_slot(position: u32) -> u32 {
    return position % params.capacity;
}

fn segment(sequence: u32, position: u32) -> u32 {
    return 1u;
}
