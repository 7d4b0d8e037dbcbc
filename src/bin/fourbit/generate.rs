//! `fourbit generate`

use crate::args::{Global, ModelArgs, QuantArgs};
use crate::interrupt;
use crate::measure::note_beyond;
use crate::output::{Output, note, print};
use fourbit::{
    Error, Result,
    generate::{Finish, Generator, Sampling},
    model::{Model, Source},
    tokenizer::{Message, Tokenizer},
};
use serde_json::json;
use std::io::{BufRead, IsTerminal};
use std::sync::mpsc;
use std::time::Instant;

/// Answer a prompt, or chat on a terminal where no prompt is given
#[derive(clap::Args)]
pub struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    quant: QuantArgs,
    /// What the user says; the model's chat template is put around it [default: what stdin holds]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// What the system says first
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Continue the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// Tokens to generate at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    /// End the answer before this text, too; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// 0 takes the likeliest token; above, logits are divided by it
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the N likeliest tokens; 0 is all of them
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,
    /// Draw from the likeliest tokens whose probabilities add up to P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
}

impl Generate {
    pub fn run(&self, global: &Global) -> Result<()> {
        let base = self.model.base()?;
        let source = Source::open(&base.path)?;
        let load_options = self.quant.options(&source)?;
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::config("--stop", "expected a text, got an empty one"));
        }
        let tokenizer = base.tokenizer()?.ok_or_else(|| {
            Error::config("--model", format!("prompts need a tokenizer: {}", Tokenizer::why_none(&base.path)))
        })?;
        let chat = self.prompt.is_none() && std::io::stdin().is_terminal() && !global.json && !self.raw;
        let prompt = if chat { None } else { Some(self.encode(&tokenizer, &self.text()?)?) };
        let rows = source.arch().vocab_size;
        note_beyond(&tokenizer, rows);
        prompt.iter().try_for_each(|ids| tokenizer.expect_rows("--prompt", ids, rows))?;

        let gpu = global.gpu()?;
        let mut model = Model::from_source(&gpu, &source, &load_options)?;
        if let Some(folder) = &self.model.adapter {
            model.load_adapter(folder, false)?;
        }
        match prompt {
            Some(ids) => self.answer(&model, &tokenizer, &ids, global.output()),
            None => self.chat(&model, &tokenizer),
        }
    }

    fn text(&self) -> Result<String> {
        let text = match &self.prompt {
            Some(text) => text.clone(),
            None => {
                let (send, read) = mpsc::channel();
                std::thread::spawn(move || send.send(std::io::read_to_string(std::io::stdin())));
                let read = interrupt::next(&read).ok_or_else(|| Error::Interrupted("no prompt was read".into()))?;
                read.map_err(Error::io("stdin"))?.trim_end_matches(['\n', '\r']).to_owned()
            }
        };
        match text.is_empty() {
            true => Err(Error::config("--prompt", "is empty")),
            false => Ok(text),
        }
    }

    fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        if self.raw {
            return tokenizer.encode(text, true);
        }
        let mut messages = self.opening();
        messages.push(Message::new("user", text));
        tokenizer.encode(&tokenizer.apply_chat_template(&messages, true)?, false)
    }

    fn opening(&self) -> Vec<Message> {
        self.system.iter().map(|text| Message::new("system", text.as_str())).collect()
    }

    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
            max_new_tokens: self.max_new_tokens,
        }
    }

    fn answer(&self, model: &Model, tokenizer: &Tokenizer, prompt: &[u32], out: Output) -> Result<()> {
        let mut generator = Generator::new(model, prompt.len().saturating_add(self.max_new_tokens))?;
        let start = Instant::now();
        // The first token comes when the prompt is read; speed is that of the tokens after it.
        let mut first = None;
        let Answer { text, ids, reason, stop } = self.stream(&mut generator, tokenizer, prompt, |piece| {
            first.get_or_insert_with(Instant::now);
            if !out.is_json() {
                print(piece);
            }
        })?;
        if !out.is_json() {
            print("\n");
        }
        let decoding = first.map_or(0.0, |first| first.elapsed().as_secs_f64());
        let speed = if ids.len() > 1 && decoding > 0.0 { (ids.len() - 1) as f64 / decoding } else { 0.0 };
        let seconds = start.elapsed().as_secs_f64();
        note(format_args!(
            "{} tokens read, {} generated in {seconds:.1} s, {speed:.1} tokens/s",
            prompt.len(),
            ids.len()
        ));
        out.result(&json!({
            "text": text,
            "stop_reason": reason,
            "stop": stop,
            "tokens": ids.len(),
            "prompt_tokens": prompt.len(),
            "tokens_per_second": speed,
            "seconds": seconds,
            "peak_bytes": model.gpu().peak_bytes(),
        }));
        Ok(())
    }

    /// Generates after `prompt`, handing out text as it becomes whole (once for each token, perhaps empty).
    fn stream(
        &self,
        generator: &mut Generator<&Model>,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        mut on_text: impl FnMut(&str),
    ) -> Result<Answer> {
        let mut decoder = tokenizer.stream(true);
        let mut text = StopText::new(&self.stop);
        let ids = generator.generate(prompt, &self.sampling(), tokenizer.eos_ids(), |id| {
            on_text(&text.push(&decoder.push(id)?));
            Ok(text.found.is_none() && !interrupt::pending())
        })?;
        if text.found.is_none() {
            on_text(&text.push(&decoder.finish()?));
        }
        on_text(&text.finish());
        let (reason, stop) = match (text.found, generator.finish()) {
            (Some(stop), _) => ("stop_text", Some(stop)),
            (None, Finish::EndToken(id)) => ("end_token", tokenizer.token(id)),
            (None, Finish::MaxNewTokens) => ("max_new_tokens", None),
            (None, Finish::Positions) => ("positions", None),
            (None, Finish::Stopped) => ("interrupted", None),
        };
        Ok(Answer { text: text.written, ids, reason, stop })
    }

    fn chat(&self, model: &Model, tokenizer: &Tokenizer) -> Result<()> {
        note(format_args!("Type a message and press Enter; an empty line forgets the conversation, Ctrl-D ends it."));
        let mut generator = Generator::new(model, model.arch().max_positions.min(CHAT_TOKENS))?;
        let mut messages = self.opening();
        // What the generator holds, so that only what is new is read.
        let mut held: Vec<u32> = Vec::new();
        // One line at a time, so that what comes later is not read before it is asked for.
        let (send, lines) = mpsc::sync_channel(0);
        std::thread::spawn(move || std::io::stdin().lock().lines().try_for_each(|line| send.send(line)));
        while let Some(line) = interrupt::next(&lines) {
            let line = line.map_err(Error::io("stdin"))?;
            if line.trim().is_empty() {
                messages = self.opening();
                note(format_args!("(forgotten)"));
                continue;
            }
            messages.push(Message::new("user", line));
            let ids = tokenizer.encode(&tokenizer.apply_chat_template(&messages, true)?, false)?;
            tokenizer.expect_rows("--prompt", &ids, generator.model().arch().vocab_size)?;
            let new = match ids.strip_prefix(held.as_slice()) {
                Some(new) if !new.is_empty() => new,
                _ => {
                    generator.reset();
                    &ids
                }
            };
            let Answer { text, ids: answer, .. } = self.stream(&mut generator, tokenizer, new, print)?;
            print("\n");
            messages.push(Message::new("assistant", text.trim()));
            // The last token is chosen, not read.
            held = ids.iter().chain(&answer[..answer.len().saturating_sub(1)]).copied().collect();
        }
        Ok(())
    }
}

/// Room for a conversation, where the model has as many positions.
const CHAT_TOKENS: usize = 4096;

/// What was generated, and why no more was.
struct Answer {
    text: String,
    ids: Vec<u32>,
    reason: &'static str,
    /// The token or text that ended it.
    stop: Option<String>,
}

/// Hands text on up to the first of the texts that end it, and holds back what may be the beginning of one.
struct StopText<'a> {
    stops: &'a [String],
    held: String,
    written: String,
    found: Option<String>,
}

impl StopText<'_> {
    fn new(stops: &[String]) -> StopText<'_> {
        StopText { stops, held: String::new(), written: String::new(), found: None }
    }

    /// The text that is known to be no part of a stop.
    fn push(&mut self, piece: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        self.held += piece;
        let first =
            self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop))).min_by_key(|(at, _)| *at);
        let end = match first {
            Some((at, stop)) => {
                self.found = Some(stop.clone());
                at
            }
            None => {
                let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
                self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len())
            }
        };
        let rest = self.held.split_off(end);
        let text = std::mem::replace(&mut self.held, rest);
        self.written += &text;
        text
    }

    /// What was held back for nothing.
    fn finish(&mut self) -> String {
        let text = if self.found.is_none() { std::mem::take(&mut self.held) } else { String::new() };
        self.written += &text;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::StopText;

    #[test]
    fn text_ends_before_the_first_stop_and_loses_nothing_else() {
        let stops = ["###".to_owned(), "\n\nQ".to_owned()];
        let run = |pieces: &[&str]| {
            let mut text = StopText::new(&stops);
            let mut out: String = pieces.iter().map(|piece| text.push(piece)).collect();
            out += &text.finish();
            assert_eq!(out, text.written);
            (out, text.found)
        };
        assert_eq!(run(&["a #", "# b", "##"]), ("a ## b##".into(), None));
        assert_eq!(run(&["a #", "#", "# b", "c"]), ("a ".into(), Some("###".into())));
        assert_eq!(run(&["é\n", "\n", "\nQ###"]), ("é\n".into(), Some("\n\nQ".into())));
        assert_eq!(run(&["a\n", "\n"]), ("a\n\n".into(), None));
    }
}
