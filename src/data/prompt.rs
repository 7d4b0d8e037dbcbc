//! Virtual tokens in front of rows.

use super::{Batch, IGNORE, MASKED};
use crate::{Error, Result};
use std::{borrow::Cow, ops::Range};

impl Batch {
    /// The same rows behind the virtual tokens `prompt`, as PEFT's prompt tuning puts them: labels are [`IGNORE`] there, positions count on
    /// behind them, and the first token of a row is predicted by the last virtual one where it has a label. Without virtual tokens the
    /// rows as they are. Errors: Config for a row of several examples, which each would need their own.
    pub fn behind(&self, prompt: Range<u32>) -> Result<Cow<'_, Batch>> {
        let (count, seq_len) = (prompt.len(), self.seq_len.max(1));
        if count == 0 {
            return Ok(Cow::Borrowed(self));
        }
        if let Some(i) = self.segment_ids.iter().position(|segment| segment & !MASKED > 1) {
            let message = format!(
                "row {} holds several examples, and virtual tokens stand in front of one; give each a row of its own (no packing)",
                i / seq_len
            );
            return Err(Error::config("batch", message));
        }
        fn with<T: Copy>(rows: &[T], seq_len: usize, front: impl Iterator<Item = T> + Clone) -> Vec<T> {
            rows.chunks(seq_len).flat_map(|row| front.clone().chain(row.iter().copied())).collect()
        }
        let positions: Vec<u32> = self.position_ids.iter().map(|position| position + count as u32).collect();
        Ok(Cow::Owned(Batch {
            batch: self.batch,
            seq_len: self.seq_len + count,
            input_ids: with(&self.input_ids, seq_len, prompt),
            labels: with(&self.labels, seq_len, std::iter::repeat_n(IGNORE, count)),
            attention_mask: with(&self.attention_mask, seq_len, std::iter::repeat_n(1, count)),
            segment_ids: with(&self.segment_ids, seq_len, std::iter::repeat_n(1, count)),
            position_ids: with(&positions, seq_len, 0..count as u32),
            pairs: self.pairs.clone(),
            epoch: self.epoch,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Example;

    #[test]
    fn rows_stand_behind_virtual_tokens() {
        let example = |ids: &[u32], mask: Option<Vec<u8>>| Example {
            input_ids: ids.to_vec(),
            labels: ids.iter().map(|&id| id as i32).collect(),
            attention_mask: mask,
        };
        let (long, short) = (example(&[5, 6, 7], Some(vec![1, 0, 1])), example(&[8, 9], None));
        let batch = Batch::collate(&[&long, &short], 0);
        assert!(matches!(batch.behind(100..100).unwrap(), Cow::Borrowed(same) if *same == batch));
        let behind = batch.behind(100..102).unwrap();
        assert_eq!((behind.batch, behind.seq_len), (2, 5));
        assert_eq!(behind.input_ids, [100, 101, 5, 6, 7, 100, 101, 8, 9, 0]);
        assert_eq!(behind.shifted_labels(), [-100, 5, 6, 7, -100, -100, 8, 9, -100, -100]);
        assert_eq!(behind.attention_mask, [1, 1, 1, 0, 1, 1, 1, 1, 1, 0]);
        assert_eq!(behind.segment_ids, [1, 1, 1, 1 | MASKED, 1, 1, 1, 1, 1, 0]);
        assert_eq!(behind.position_ids[..5], [0, 1, 2, 3, 4]);
        assert_eq!((batch.predicted(), behind.predicted()), (3, 5), "the first tokens too");

        let packed = Batch { segment_ids: vec![1, 1, 2, 1, 1, 0], ..batch };
        let error = packed.behind(100..102).unwrap_err().to_string();
        assert!(error.contains("row 0") && error.contains("packing"), "{error}");
    }
}
