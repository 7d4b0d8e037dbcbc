//! Programs that differ by a size, recorded when they are first needed.

use super::Pool;
use crate::Result;
use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
};

/// Programs with whatever belongs to each, by what they were recorded for; their activations share memory.
pub struct Programs<K, P> {
    pool: Pool,
    all: HashMap<K, P>,
}

impl<K, P> Default for Programs<K, P> {
    fn default() -> Self {
        Programs { pool: Pool::default(), all: HashMap::new() }
    }
}

impl<K: Eq + Hash, P> Programs<K, P> {
    /// The program for `key`; `record` makes it where there is none yet. Errors: those of `record`.
    pub fn get(&mut self, key: K, record: impl FnOnce(&mut Pool) -> Result<P>) -> Result<&mut P> {
        Ok(match self.all.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(record(&mut self.pool)?),
        })
    }

    /// Forgets all programs; their memory stays for those that come.
    pub fn forget(&mut self) {
        self.all.clear();
    }

    /// Those recorded so far.
    pub fn iter(&self) -> impl Iterator<Item = &P> {
        self.all.values()
    }

    /// The memory of their activations.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// Bytes of their activations.
    pub fn bytes(&self) -> u64 {
        self.pool.bytes()
    }
}
