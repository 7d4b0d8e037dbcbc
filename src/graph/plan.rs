//! Lifetimes to memory: which values share a buffer, and how many bytes that takes.

use super::{Graph, Memory, Program, program};
use crate::{
    Result,
    gpu::{Buffer, Tensor},
};
use std::sync::Arc;

/// A recording whose memory is laid out.
pub struct Plan {
    pub(super) graph: Graph,
    /// For each transient value in use: its slot.
    slot_of: Vec<Option<usize>>,
    slot_bytes: Vec<u64>,
    lower_bound: u64,
}

/// Buffers that programs share: one program runs at a time, so all of them may use the same memory.
#[derive(Default)]
pub struct Pool {
    /// Largest first.
    buffers: Vec<Arc<Buffer>>,
}

impl Pool {
    /// Bytes of all buffers.
    pub fn bytes(&self) -> u64 {
        self.buffers.iter().map(|b| b.size()).sum()
    }
}

#[derive(Clone, Copy)]
struct Life {
    value: usize,
    bytes: u64,
    first: usize,
    last: usize,
}

impl Life {
    fn overlaps(&self, other: &Life) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl Plan {
    /// Largest value first, each into the smallest slot that is free over its whole life ("greedy by size", Pisarchyk and
    /// Lee 2020). Whole buffers are reused rather than ranges of one arena: see ARCHITECTURE.md for the comparison.
    pub(super) fn new(graph: Graph) -> Plan {
        let lives = lifetimes(&graph);
        let lower_bound = most_alive(&lives, graph.dispatches.len());
        let mut order: Vec<&Life> = lives.iter().collect();
        order.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.first.cmp(&b.first)).then(a.value.cmp(&b.value)));
        let mut slot_of = vec![None; graph.infos.len()];
        let mut slots: Vec<(u64, Vec<Life>)> = Vec::new();
        for life in order {
            // Slots are made in descending size, so the last free one is the smallest that fits.
            let free = slots.iter().rposition(|(_, held)| held.iter().all(|other| !life.overlaps(other)));
            let slot = free.unwrap_or_else(|| {
                slots.push((life.bytes, Vec::new()));
                slots.len() - 1
            });
            slots[slot].1.push(*life);
            slot_of[life.value] = Some(slot);
        }
        Plan { graph, slot_of, slot_bytes: slots.into_iter().map(|s| s.0).collect(), lower_bound }
    }

    /// Bytes of activations: what [`Plan::build`] takes from an empty pool.
    pub fn bytes(&self) -> u64 {
        self.slot_bytes.iter().sum()
    }

    /// Bytes that [`Plan::build`] takes beside what `pool` has, as on a dry device: activations, and parameters of dispatches that are not cut.
    pub fn growth(&self, pool: &Pool) -> u64 {
        let mut sizes: Vec<u64> = pool.buffers.iter().map(|buffer| buffer.size()).collect();
        let mut grown = program::stride(&self.graph.gpu) * self.len() as u64;
        for (i, &bytes) in self.slot_bytes.iter().enumerate() {
            if sizes.get(i).is_none_or(|&size| size < bytes) {
                sizes.insert(sizes.partition_point(|&size| size >= bytes), bytes);
                grown += bytes;
            }
        }
        grown
    }

    /// The most bytes that are alive at once: no layout can take less.
    pub fn lower_bound(&self) -> u64 {
        self.lower_bound
    }

    /// Dispatches.
    pub fn len(&self) -> usize {
        self.graph.dispatches.len()
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.graph.is_empty()
    }

    /// Makes what the program needs: pipelines, buffers out of `pool` (which grows where needed), bind groups.
    /// Errors: OutOfMemory, Device, Shape, Unsupported.
    pub fn build(self, pool: &mut Pool) -> Result<Program> {
        let gpu = self.graph.gpu.clone();
        for (i, &bytes) in self.slot_bytes.iter().enumerate() {
            if pool.buffers.get(i).is_none_or(|b| b.size() < bytes) {
                let buffer = gpu.buffer("activations", bytes)?;
                let at = pool.buffers.partition_point(|b| b.size() >= buffer.size());
                pool.buffers.insert(at, buffer);
            }
        }
        let tensors = self
            .graph
            .infos
            .iter()
            .zip(&self.slot_of)
            .map(|(info, slot)| match (&info.memory, slot) {
                (Memory::Persistent(tensor), _) => Some(tensor.clone()),
                (Memory::Transient { .. }, None) => None,
                (Memory::Transient { .. }, Some(slot)) => {
                    Some(Tensor::view(pool.buffers[*slot].clone(), 0, info.shape.clone(), info.dtype))
                }
            })
            .collect();
        Program::new(self.graph, tensors)
    }
}

fn lifetimes(graph: &Graph) -> Vec<Life> {
    let mut lives: Vec<Option<Life>> = vec![None; graph.infos.len()];
    for (at, dispatch) in graph.dispatches.iter().enumerate() {
        for value in dispatch.args.iter().map(|v| v.id) {
            let info = &graph.infos[value];
            let Memory::Transient { kept } = info.memory else { continue };
            let bytes = info.bytes().max(4).next_multiple_of(4);
            let life = lives[value].get_or_insert(Life { value, bytes, first: at, last: at });
            life.last = if kept { usize::MAX } else { at };
        }
    }
    lives.into_iter().flatten().collect()
}

fn most_alive(lives: &[Life], steps: usize) -> u64 {
    let mut change = vec![0i64; steps + 1];
    for life in lives {
        change[life.first] += life.bytes as i64;
        if life.last < steps {
            change[life.last + 1] -= life.bytes as i64;
        }
    }
    let mut alive = 0i64;
    change
        .iter()
        .map(|c| {
            alive += c;
            alive
        })
        .max()
        .unwrap_or(0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(value: usize, bytes: u64, first: usize, last: usize) -> Life {
        Life { value, bytes, first, last }
    }

    #[test]
    fn the_lower_bound_is_the_largest_sum_of_living_values() {
        let lives = [life(0, 8, 0, 1), life(1, 4, 1, 2), life(2, 16, 2, usize::MAX)];
        assert_eq!(most_alive(&lives, 3), 20);
    }

    #[test]
    fn lives_that_touch_in_one_dispatch_overlap() {
        assert!(life(0, 4, 0, 1).overlaps(&life(1, 4, 1, 2)));
        assert!(!life(0, 4, 0, 1).overlaps(&life(1, 4, 2, 2)));
    }
}
