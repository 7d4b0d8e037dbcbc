// A code book in workgroup memory: GPUs keep a private array that is indexed in memory, where a look-up is a load.
import codebook

var<workgroup> table: array<f32, 1u << BITS>;

fn table_init(lane: u32) {
    var all = CODEBOOK;
    if (lane < 1u << BITS) {
        table[lane] = all[lane];
    }
    workgroupBarrier();
}
