// y = (Σ codes_x · codes_w) * scale_x * scale_w + bias, both operands in bytes, summed as integers: exact. Bytes come four to
// a word. Through workgroup memory, for GPUs: a workgroup of 256 computes a tile of 64 x 64, each invocation 4 x 4.
//
// Specialised by `dot4` (the dot product of four bytes), `weight_bytes` (whether rows of the weight begin at whole words),
// `kept` (columns that stay in floats) and `bias`.

import index
import product_int8

const TILE: u32 = 64u;
const STEP: u32 = 8u;

var<workgroup> tile_x: array<u32, STEP * TILE>; // [word, row]
var<workgroup> tile_w: array<u32, STEP * TILE>; // [word, column]

// Words are turned against each other, which spreads stores over the memory banks.
fn spot(word: u32, at: u32) -> u32 {
    return word * TILE + (at + 4u * word) % TILE;
}

@compute @workgroup_size(256)
fn tiled(
    @builtin(workgroup_id) wg: vec3<u32>,
    @builtin(num_workgroups) counts: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = group_index(wg, counts);
    if (g >= params.group_end) {
        return;
    }
    let tiles = (params.rows + TILE - 1u) / TILE;
    let row0 = g % tiles * TILE;
    let col0 = g / tiles * TILE;
    let row = lane / 16u * 4u;
    let col = lane % 16u * 4u;
    var acc: array<vec4<i32>, 4>;
    for (var d = 0u; d < params.words; d += STEP) {
        // Neighbours load neighbouring words of a row; words are a multiple of four, the last step may be half of one.
        for (var i = lane; i < STEP * TILE; i += 256u) {
            let at = i / STEP;
            let word = i % STEP;
            let there = d + word < params.words;
            let last = min(d + word, params.words - 1u);
            let v = x[min(row0 + at, params.rows - 1u) * params.words + last];
            tile_x[spot(word, at)] = select(0u, v, there);
            tile_w[spot(word, at)] = weight_word(min(col0 + at, params.cols - 1u), last);
        }
        workgroupBarrier();
        for (var k = 0u; k < STEP; k++) {
            let ax = spot(k, row);
            let aw = spot(k, col);
            let w = vec4<u32>(tile_w[aw], tile_w[aw + 1u], tile_w[aw + 2u], tile_w[aw + 3u]);
            for (var i = 0u; i < 4u; i++) {
                let v = tile_x[ax + i];
                acc[i] += vec4<i32>(dot4(v, w.x), dot4(v, w.y), dot4(v, w.z), dot4(v, w.w));
            }
        }
        workgroupBarrier();
    }
    var sums: array<vec4<f32>, 4>;
    for (var n = 0u; n < kept_count(); n++) {
        let c = kept_column(n);
        let at = min(col0 + col + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(params.cols - 1u));
        let w = vec4<f32>(weight_at(at.x, c), weight_at(at.y, c), weight_at(at.z, c), weight_at(at.w, c));
        for (var i = 0u; i < 4u; i++) {
            sums[i] = fma(vec4<f32>(kept_at(min(row0 + row + i, params.rows - 1u), c)), w, sums[i]);
        }
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            store(row0 + row + i, col0 + col + j, acc[i][j], sums[i][j]);
        }
    }
}
