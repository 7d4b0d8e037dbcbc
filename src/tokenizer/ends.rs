//! Which tokens end an answer: found in the template, and for GGUF files by name.

use super::{ChatContext, Message, Tokenizer};

/// Tokens that end generation in llama.cpp whatever the file's metadata says (`llama_vocab`'s end-of-generation tokens, 00ad355).
const NAMES: [&str; 33] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "[e~[",
    // What parts files and fills them in code models.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// The ids among `tokens` that end generation by name.
pub(super) fn by_name(tokens: &[String]) -> Vec<u32> {
    let has = |name: &str| tokens.iter().any(|token| token == name);
    // In vocabularies like gpt-oss's `<|end|>` parts what is thought from what is said, and ends neither.
    let parts = has("<|return|>") && has("<|call|>");
    let ends = |token: &str| NAMES.contains(&token) && !(parts && token == "<|end|>");
    tokens.iter().enumerate().filter(|(_, token)| ends(token)).map(|(id, _)| id as u32).collect()
}

/// The token after which the template closes an answer; `None` where it writes none, or no such conversation.
///
/// It is the first token of the added vocabulary behind an answer with nothing but blanks between, and one that ends the
/// text or stands behind the answer before too: a template may write the header of the next answer whether it is asked or
/// not.
pub(super) fn turn_end(tokenizer: &Tokenizer) -> Option<u32> {
    const SAID: [&str; 4] = ["Xquestion", "Xreply", "Yquestion", "Yreply"];
    let turns: Vec<Message> =
        SAID.iter().zip(["user", "assistant"].iter().cycle()).map(|(text, role)| Message::new(*role, *text)).collect();
    let text = tokenizer.chat_template().render(&turns, &ChatContext::default(), false).ok()?;
    let encoded = tokenizer.encode_with_offsets(&text, false).ok()?;
    let blank = |i: usize| text.get(encoded.offsets[i].0..encoded.offsets[i].1).is_some_and(|t| t.trim().is_empty());
    let added = |i: usize| tokenizer.is_added(encoded.ids[i]) && !blank(i);
    let behind = |said: &str| {
        let end = text.rfind(said)? + said.len();
        let from = encoded.offsets.iter().position(|&(start, _)| start >= end)?;
        (from..encoded.ids.len()).find(|&i| !blank(i)).filter(|&i| added(i))
    };
    let last = behind(SAID[3])?;
    let id = encoded.ids[last];
    let opens = (0..encoded.ids.len()).find(|&i| added(i) && Some(encoded.ids[i]) != tokenizer.bos_id());
    let is_last = (last + 1..encoded.ids.len()).all(blank);
    let repeats = behind(SAID[1]).is_some_and(|i| encoded.ids[i] == id) && opens.is_none_or(|i| encoded.ids[i] != id);
    ((is_last || repeats) && Some(id) != tokenizer.bos_id()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::by_name;

    #[test]
    fn llama_cpps_ends_are_found_by_name() {
        let tokens = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        assert_eq!(by_name(&tokens(&["a", "<|im_end|>", "<|im_start|>", "<|endoftext|>"])), [1, 3]);
        assert_eq!(by_name(&tokens(&["<|end|>", "<|return|>"])), [0, 1]);
        assert_eq!(by_name(&tokens(&["<|end|>", "<|return|>", "<|call|>"])), [1, 2]);
    }
}
