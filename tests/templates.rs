//! Chat templates against transformers: small snippets of Jinja, and the templates that the Python package trl ships.
//!
//! `FOURBIT_TEMPLATES` names the folder of the latter, which `scripts/test.sh` fetches.
#![cfg(feature = "tokenizer")]

#[path = "support/text.rs"]
mod text;

use std::collections::BTreeMap;
use std::path::Path;

use fourbit::Result;
use fourbit::data::{Chat, DataOptions, Dataset, IGNORE, Row};
use fourbit::tokenizer::{ChatContext, ChatTemplate, Message, Tokenizer};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/templates.json"))).unwrap()
}

fn special(golden: &Value) -> Vec<(String, String)> {
    let tokens = golden["special"].as_object().unwrap();
    tokens.iter().map(|(name, text)| (name.clone(), text.as_str().unwrap().to_owned())).collect()
}

#[test]
fn snippets_are_rendered_as_jinja2_renders_them() {
    let golden = golden();
    let context = ChatContext { variables: golden["values"].as_object().unwrap().clone(), ..ChatContext::default() };
    let mut wrong = Vec::new();
    let snippets = golden["snippets"].as_array().unwrap();
    for snippet in snippets {
        let (source, expected) = (snippet[0].as_str().unwrap(), snippet[1].as_str());
        let template = ChatTemplate::new(source, special(&golden), Path::new("snippet"));
        let got = template.and_then(|t| t.render(&[Message::new("user", "x")], &context, false));
        if got.as_ref().ok().map(String::as_str) != expected {
            wrong.push(format!("{source}\n  jinja2  {expected:?}\n  got     {got:?}"));
        }
    }
    assert!(snippets.len() > 150);
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), snippets.len(), wrong.join("\n"));
}

#[test]
fn what_jinja2_reads_and_minijinja_does_not_is_refused_by_name() {
    for (source, words) in [
        ("{% macro f(x) %}{{ x }}{{ varargs | length }}{% endmacro %}{{ f(1, 2) }}", "varargs"),
        ("{% macro f() %}{{ kwargs }}{% endmacro %}{{ f(q=2) }}", "kwargs"),
        ("{% call(x) f() %}{{ kwargs.q }}{% endcall %}", "kwargs"),
        ("{{ 'a\\N{BULLET}' }}", "\\N{...}"),
        ("{{ '\\ud83d\\ude42' }}", "\"d83d\""),
    ] {
        let error = ChatTemplate::new(source, Vec::new(), Path::new("t")).map(drop).unwrap_err().to_string();
        assert!(error.contains("chat template") && error.contains(words), "{source}: {error}");
    }
}

/// FNV-1a of 64 bits, as `scripts/make_template_golden.py` takes it.
fn digest(text: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The text without today's date, which some templates print.
fn undated(mut text: String) -> String {
    let now = |form: &str| {
        let source = format!("{{{{ strftime_now('{form}') }}}}");
        let clock = ChatTemplate::new(&source, vec![], Path::new("clock")).unwrap();
        clock.render(&[], &ChatContext::default(), false).unwrap()
    };
    for form in ["%Y-%m-%d", "%d %b %Y", "%B %d, %Y", "%d %B %Y"] {
        text = text.replace(&now(form), "DATE");
    }
    text
}

/// A conversation of the golden file.
struct Case {
    messages: Vec<Message>,
    context: ChatContext,
}

impl Case {
    fn new(case: &Value) -> Case {
        let some = |name: &str| Some(case[name].clone()).filter(|v| !v.is_null());
        let variables = case["kwargs"].as_object().cloned().unwrap_or_default();
        let context = ChatContext { tools: some("tools"), documents: some("documents"), variables };
        Case { messages: serde_json::from_value(case["messages"].clone()).unwrap(), context }
    }

    /// The text, the prompt for the last answer, and the parts that the template marks as the assistant's.
    fn rendered(&self, template: &ChatTemplate) -> [Result<String>; 3] {
        let (before, all) = (&self.messages[..self.messages.len() - 1], &self.messages);
        let marked = template.render_marked(all, &self.context);
        let parts =
            marked.map(|(text, spans)| spans.into_iter().map(|s| text[s].to_owned()).collect::<Vec<_>>().join("\0"));
        [template.render(all, &self.context, false), template.render(before, &self.context, true), parts]
    }
}

/// What a test compares: a hash of the text, or that it was refused, with the words of the template where these are its own.
fn agrees(expected: &str, got: &Result<String>) -> bool {
    match (expected.strip_prefix("refused"), got) {
        (Some(words), Err(e)) => e.to_string().contains(words.trim_start_matches(": ")),
        (None, Ok(text)) => digest(&undated(text.clone())) == expected,
        _ => false,
    }
}

/// The folder of the templates that trl ships, or a line that says what is missing.
fn shipped() -> Option<String> {
    let folder = std::env::var("FOURBIT_TEMPLATES").ok();
    if folder.is_none() {
        eprintln!(
            "skipped: FOURBIT_TEMPLATES does not name the folder of trl's chat templates (scripts/templates.sh fetches it)"
        );
    }
    folder
}

#[test]
fn templates_that_trl_ships_are_rendered_as_transformers_renders_them() {
    let Some(folder) = shipped() else { return };
    let golden = golden();
    let cases: Vec<Case> = golden["conversations"].as_array().unwrap().iter().map(Case::new).collect();
    let (mut wrong, mut compared) = (BTreeMap::<String, Vec<String>>::new(), 0);
    for (name, rows) in golden["templates"].as_object().unwrap() {
        let source = std::fs::read_to_string(format!("{folder}/{name}.jinja")).unwrap();
        let template = match ChatTemplate::new(&source, special(&golden), Path::new(name)) {
            Ok(template) => template,
            Err(e) => {
                wrong.entry(e.to_string()).or_default().push(name.clone());
                continue;
            }
        };
        for ((case, row), n) in cases.iter().zip(rows.as_array().unwrap()).zip(0..) {
            let kinds = ["text", "prompt", "marks"];
            for ((got, expected), kind) in case.rendered(&template).iter().zip(row.as_array().unwrap()).zip(kinds) {
                compared += 1;
                if !agrees(expected.as_str().unwrap(), got) {
                    let said = got.as_ref().map_or_else(ToString::to_string, |_| "another text".to_owned());
                    wrong.entry(format!("{said}, expected {expected}")).or_default().push(format!("{name} {n} {kind}"));
                }
            }
        }
    }
    assert!(compared > 2000, "{compared}");
    assert!(wrong.is_empty(), "of {compared}: {wrong:#?}");
}

/// Tokens of the templates above that end a turn or stand at its beginning.
const TOKENS: [&str; 24] = [
    "</s>",
    "<s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|end|>",
    "<|start|>",
    "<|return|>",
    "<|call|>",
    "<|eot|>",
    "<|eom|>",
    "<end_of_turn>",
    "<start_of_turn>",
    "<|turn>",
    "<turn|>",
    "<|tool_response>",
    "<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|>",
    "<end_of_utterance>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "<|user|>",
    "<|observation|>",
];

/// A tokenizer that knows these tokens, with a template.
fn tokenizer(source: &str) -> Result<Tokenizer> {
    let mut vocab = text::vocab(&text::golden(), "byte_level");
    let id = |vocab: &fourbit::tokenizer::GgufVocab, token: &str| {
        vocab.tokens.iter().position(|t| t == token).map(|id| id as u32)
    };
    for token in TOKENS {
        if id(&vocab, token).is_none() {
            vocab.tokens.push(token.to_owned());
            vocab.token_types.push(3);
        }
    }
    (vocab.bos, vocab.eos) = (id(&vocab, "<s>"), id(&vocab, "</s>"));
    vocab.chat_templates = vec![("default".to_owned(), source.to_owned())];
    Tokenizer::from_gguf(&vocab, "templates")
}

/// What is learned of a conversation, a text for each part, or why nothing is.
fn learned(tokenizer: &Tokenizer, case: &Case) -> Result<Vec<String>> {
    let row = Row::Chat(Chat { messages: case.messages.clone(), context: case.context.clone() });
    let options = DataOptions::new(1 << 20, 1 << 20);
    let set = Dataset::from_rows(&[row], Some(tokenizer), &options)?;
    let example = set.example(0)?;
    let labels = example.labels.split(|&l| l == IGNORE).filter(|part| !part.is_empty());
    labels.map(|part| tokenizer.decode(&part.iter().map(|&l| l as u32).collect::<Vec<_>>(), false)).collect()
}

/// Whether `marked` is made of the answers and, around them, no more than parts of the prompt for an answer, line ends and ends of
/// the text: some templates mark these too. Some leave the token out that hands over to a tool.
fn only_framed(marked: &str, answers: &[String], prompt: &str) -> bool {
    let is_frame = |part: &str| part.is_empty() || part == "</s>" || prompt.contains(part);
    let mut rest = marked;
    for answer in answers {
        let answer = answer.trim_end_matches("<|tool_response>");
        let Some((frame, after)) = rest.split_once(answer) else { return false };
        if !is_frame(frame.trim()) {
            return false;
        }
        rest = after;
    }
    is_frame(rest.trim())
}

#[test]
fn answers_are_found_where_templates_with_marks_have_them() {
    let Some(folder) = shipped() else { return };
    let golden = golden();
    let cases: Vec<Case> = golden["conversations"].as_array().unwrap().iter().map(Case::new).collect();
    let (mut same, mut refused, mut wrong) = (0, 0, Vec::new());
    for name in golden["templates"].as_object().unwrap().keys().filter(|name| name.ends_with("_training")) {
        let source = std::fs::read_to_string(format!("{folder}/{name}.jinja")).unwrap();
        let bare = source.replace("endgeneration", "endif").replace(" generation", " if true");
        let (marked, bare) = (tokenizer(&source).unwrap(), tokenizer(&bare).unwrap());
        for (n, case) in cases.iter().enumerate() {
            let Ok(expected) = learned(&marked, case) else { continue };
            let before = &case.messages[..case.messages.len() - 1];
            let Ok(prompt) = bare.chat_template().render(before, &case.context, true) else { continue };
            match learned(&bare, case) {
                Ok(got) if only_framed(&expected.concat(), &got, &prompt) => same += 1,
                Ok(got) => wrong.push(format!("{name} {n}\n  marks {expected:?}\n  found {got:?}")),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(wrong.is_empty(), "{same} equal, {refused} refused, {} others:\n{}", wrong.len(), wrong.join("\n"));
    assert!(same > 300 && refused < 60, "{same} equal, {refused} refused");
}
