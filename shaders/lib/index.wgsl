// Workgroups are numbered along one line. The engine folds counts above 65535 into y and may run a long dispatch as
// several, each with its own group_base and group_end; a group at or past group_end must return at once.
fn group_index(wg: vec3<u32>, counts: vec3<u32>) -> u32 {
    return params.group_base + wg.x + wg.y * counts.x;
}
