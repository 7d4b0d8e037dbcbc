//! Decoding token by token.

use super::Tokenizer;
use crate::error::Result;

/// Turns ids that come one at a time into text, and holds back what is not yet settled: the bytes of an unfinished character, and
/// runs of byte tokens (`<0x0A>`), which decode together, to text or to U+FFFD for each. The pieces make the text that
/// [`Tokenizer::decode`] gives for all ids.
#[derive(Debug, Clone)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Ids since the last safe point: decoders look at neighbours (a leading blank is dropped only at the start), so a
    /// few ids that are already written stay in front of the new ones.
    ids: Vec<u32>,
    /// How many of `ids` are written.
    written: usize,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> StreamDecoder<'a> {
        StreamDecoder { tokenizer, skip_special, ids: Vec::new(), written: 0 }
    }

    /// Takes one more id; gives the text that became complete, possibly none.
    pub fn push(&mut self, id: u32) -> Result<String> {
        // An id that decodes to nothing, between others, changes nothing.
        if self.tokenizer.is_silent(id, self.skip_special) {
            return Ok(String::new());
        }
        self.ids.push(id);
        if self.tokenizer.is_byte(id) {
            return Ok(String::new());
        }
        let text = self.pending()?;
        // An unfinished character decodes to U+FFFD. A real U+FFFD only waits for the next id.
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        if !text.is_empty() {
            self.ids.drain(..self.written);
            self.written = self.ids.len();
        }
        Ok(text)
    }

    /// Ends the stream: gives what was held back, with U+FFFD for bytes that are no character.
    pub fn finish(mut self) -> Result<String> {
        let text = self.pending()?;
        self.ids.clear();
        Ok(text)
    }

    /// The text of the ids that are not written yet: what stands behind that of the written ones.
    fn pending(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[..self.written], self.skip_special)?;
        let mut all = self.tokenizer.decode(&self.ids, self.skip_special)?;
        let same = before.char_indices().zip(all.chars()).take_while(|((_, a), b)| a == b).last();
        let at = same.map_or(0, |((at, c), _)| at + c.len_utf8());
        Ok(all.split_off(at))
    }
}
