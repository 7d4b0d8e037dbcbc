//! Chat templates: conversations to text, as transformers renders them.

use std::ops::Range;
use std::path::Path;

use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, State, syntax::SyntaxConfig};

use super::clock::Clock;
use super::message::{ChatContext, Message};
use super::{builtins, jinja};
use crate::error::{Error, Result};

/// The template of a model that brings none: the layout of the OpenAssistant-Guanaco texts, which many base models
/// have been tuned on. Every answer ends with the end-of-sequence token; other roles are written as plain text.
const PLAIN: &str = "\
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '### Human: ' + message.content + '\\n' }}
{%- elif message.role == 'assistant' -%}{{ '### Assistant: ' + message.content + (eos_token or '') + '\\n' }}
{%- else -%}{{ message.content + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Assistant:' }}{%- endif -%}";

/// The name of the template that serves unless another is asked for.
pub(super) const DEFAULT: &str = "default";
/// The name of the template for conversations with tools.
const TOOL_USE: &str = "tool_use";
/// The variable that holds the text around generation blocks; absent, they are not marked.
const MARK: &str = "__mark";

/// Instructions that a template may take for one conversation.
const FUEL: u64 = 20_000_000;
/// Bytes that a template may write per message, and once more for what stands around them.
const MESSAGE_BYTES: usize = 1 << 20;

/// Compiled chat templates with the special tokens that they may name.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    env: Environment<'static>,
    /// Names and texts, as they came.
    named: Vec<(String, String)>,
    /// Names of those that mark what the assistant says.
    marking: Vec<String>,
    special: Vec<(String, String)>,
    /// For messages: where the templates came from.
    path: std::path::PathBuf,
}

impl ChatTemplate {
    /// Compiles `source` in transformers' environment: Jinja2 with `trim_blocks`, `lstrip_blocks`, loop controls, generation marks,
    /// Python's methods and its ways of printing, `raise_exception`, `strftime_now` and a `tojson` that writes as Python does.
    ///
    /// `special` are names and texts of special tokens (`bos_token`, ...). Time is in UTC and taken once, here, so that all rows
    /// of a run agree. Errors: [`Error::Format`] with the template's line.
    pub fn new(source: &str, special: Vec<(String, String)>, path: &Path) -> Result<ChatTemplate> {
        ChatTemplate::of_named(vec![(DEFAULT.to_owned(), source.to_owned())], special, path)
    }

    /// The same for several templates by name, of which transformers takes `tool_use` for conversations with tools, else
    /// `default`. Others are kept, and never used.
    pub fn of_named(named: Vec<(String, String)>, special: Vec<(String, String)>, path: &Path) -> Result<ChatTemplate> {
        let wrong = |e: minijinja::Error| Error::format(path, format!("chat template: {e}"));
        let mut env = Environment::new();
        env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(wrong)?);
        builtins::register(&mut env);
        env.set_fuel(Some(FUEL));
        let clock = Clock::now();
        env.add_function("strftime_now", move |format: String| clock.format(&format));
        env.add_function(jinja::GENERATION, generation);
        let mut marking = Vec::new();
        for (name, source) in named.iter().filter(|(name, _)| [DEFAULT, TOOL_USE].contains(&name.as_str())) {
            let source = jinja::prepared(source).map_err(|e| Error::format(path, format!("chat template: {e}")))?;
            marking.extend(source.contains(jinja::GENERATION).then(|| name.clone()));
            env.add_template_owned(name.clone(), source).map_err(wrong)?;
        }
        Ok(ChatTemplate { env, named, marking, special, path: path.to_path_buf() })
    }

    /// The layout for models without a template: `### Human: …`, `### Assistant: …` with the end-of-sequence token
    /// after each answer, and the beginning-of-sequence token first if `with_bos`.
    pub fn plain(special: Vec<(String, String)>, with_bos: bool, path: &Path) -> Result<ChatTemplate> {
        let bos = if with_bos { "{{- bos_token -}}\n" } else { "" };
        ChatTemplate::new(&format!("{bos}{PLAIN}"), special, path)
    }

    /// The default template's text; without one that of the first.
    pub fn source(&self) -> &str {
        let default = self.named.iter().find(|(name, _)| name == DEFAULT).or_else(|| self.named.first());
        default.map_or("", |(_, source)| source)
    }

    /// Names and texts of the special tokens.
    pub(super) fn special(&self) -> &[(String, String)] {
        &self.special
    }

    /// Names and texts of all templates.
    pub fn named(&self) -> &[(String, String)] {
        &self.named
    }

    /// Whether the template for such conversations marks what the assistant says.
    pub fn marks_answers(&self, context: &ChatContext) -> bool {
        self.chosen(context).is_ok_and(|name| self.marking.iter().any(|marking| marking == name))
    }

    /// The conversation as text; with `add_generation_prompt`, up to where the assistant's answer begins.
    ///
    /// Errors: [`Error::Format`] with what the template refused (many refuse two turns of one role in a row).
    pub fn render(&self, messages: &[Message], context: &ChatContext, add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, context, add_generation_prompt, None)
    }

    /// The conversation as text, and the bytes of it that the template marks as the assistant's (`{% generation %}`).
    pub fn render_marked(&self, messages: &[Message], context: &ChatContext) -> Result<(String, Vec<Range<usize>>)> {
        let mut mark = "\u{e000}fourbit".to_owned();
        let plain = self.render(messages, context, false)?;
        while plain.contains(&mark) {
            mark.push('\u{e001}');
        }
        let marked = self.render_with(messages, context, false, Some(&mark))?;
        let (mut text, mut spans, mut open) = (String::with_capacity(plain.len()), Vec::new(), Vec::new());
        let mut parts = marked.split(mark.as_str());
        text.push_str(parts.next().unwrap_or_default());
        for part in parts {
            if let Some(part) = part.strip_prefix('<') {
                open.push(text.len());
                text.push_str(part);
            } else if let Some(part) = part.strip_prefix('>') {
                spans.extend(open.pop().map(|start| start..text.len()));
                text.push_str(part);
            }
        }
        if text != plain {
            let message = "chat template: what it writes depends on the text of a generation block, so the tokens to learn are unknown";
            return Err(Error::format(&self.path, message));
        }
        spans.sort_by_key(|span| span.start);
        Ok((text, spans))
    }

    /// The name of the template for such conversations. Errors: Format where there is none.
    fn chosen(&self, context: &ChatContext) -> Result<&'static str> {
        let has = |name: &str| self.named.iter().any(|(n, _)| n == name);
        match context.tools {
            Some(_) if has(TOOL_USE) => Ok(TOOL_USE),
            _ if has(DEFAULT) => Ok(DEFAULT),
            _ => {
                let names: Vec<&str> = self.named.iter().map(|(name, _)| name.as_str()).collect();
                let message = format!("chat template: expected one named {DEFAULT}, got [{}]", names.join(", "));
                Err(Error::format(&self.path, message))
            }
        }
    }

    fn render_with(
        &self,
        messages: &[Message],
        context: &ChatContext,
        add_generation_prompt: bool,
        mark: Option<&str>,
    ) -> Result<String> {
        let template = self.env.get_template(self.chosen(context)?).map_err(|e| self.error(e))?;
        let seen: Vec<_> = messages.iter().map(Message::seen_by_templates).collect();
        let some =
            |value: &Option<serde_json::Value>| value.as_ref().map_or(Value::from(()), |v| Value::from(Serde(v)));
        let mut values: Vec<(&str, Value)> = vec![
            ("messages", Value::from(Serde(&seen))),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", some(&context.tools)),
            ("documents", some(&context.documents)),
        ];
        values.extend(self.special.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))));
        values.extend(context.variables.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        values.extend(mark.map(|mark| (MARK, Value::from(mark))));
        let mut text = Limited { bytes: Vec::new(), most: MESSAGE_BYTES.saturating_mul(messages.len() + 1) };
        let rendered = template.render_captured_to(Value::from_pairs(values), &mut text).map(drop);
        if rendered.as_ref().is_err_and(|e| e.kind() == minijinja::ErrorKind::WriteFailure) {
            let (most, count) = (text.most, messages.len());
            let message = format!("chat template: it writes more than {most} bytes for {count} messages");
            return Err(Error::format(&self.path, message));
        }
        rendered.map_err(|e| self.error(e))?;
        String::from_utf8(text.bytes).map_err(|e| Error::format(&self.path, format!("chat template: {e}")))
    }

    fn error(&self, e: minijinja::Error) -> Error {
        let line = e.line().map(|l| format!(" (line {l})")).unwrap_or_default();
        Error::format(
            &self.path,
            format!("chat template{line}: {}", e.detail().map_or_else(|| e.to_string(), String::from)),
        )
    }
}

/// Holds so many bytes at most.
struct Limited {
    bytes: Vec<u8>,
    most: usize,
}

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.most - self.bytes.len() {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The body of a generation block, between marks where these are asked for.
fn generation(state: &mut State<'_, '_>, options: Kwargs) -> Result<String, minijinja::Error> {
    let body: Value = options.get("caller")?;
    let text = body.call(state, &[])?;
    let text = text.as_str().unwrap_or_default();
    Ok(match state.lookup(MARK).as_ref().and_then(Value::as_str) {
        Some(mark) => format!("{mark}<{text}{mark}>"),
        None => text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, prompt: bool) -> Result<String> {
        let special = vec![("bos_token".to_string(), "<s>".to_string()), ("eos_token".into(), "</s>".into())];
        let context = ChatContext::default();
        ChatTemplate::new(source, special, Path::new("t"))?.render(
            &[Message::new("user", "a \"b\" <é>")],
            &context,
            prompt,
        )
    }

    #[test]
    fn json_is_spaced_as_python_spaces_it() {
        assert_eq!(
            render("{{ messages | tojson }}", false).unwrap(),
            r#"[{"role": "user", "content": "a \"b\" <é>"}]"#
        );
        assert_eq!(
            render("{{ messages[0] | tojson(indent=2) }}", false).unwrap(),
            "{\n  \"role\": \"user\",\n  \"content\": \"a \\\"b\\\" <é>\"\n}"
        );
    }

    #[test]
    fn generation_marks_keep_the_whitespace_rules() {
        let marked =
            "{%- for m in messages %}\n  [{%- generation -%}  {{ m.content }} {% endgeneration %}\n]{% endfor %}";
        assert_eq!(render(marked, false).unwrap(), "\n  [a \"b\" <é> ]".replacen("\n", "", 1));
    }

    #[test]
    fn python_methods_loop_controls_and_namespaces_work() {
        let t = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
                 {{ m['content'].split('\"')[-1].strip() }}{{ m.get('x', 'none') }}{% break %}{% endfor %}{{ ns.n }}{{ bos_token }}";
        assert_eq!(render(t, false).unwrap(), "<é>none1<s>");
    }

    #[test]
    fn a_refusal_keeps_the_templates_words() {
        let e = render("{{ raise_exception('roles must alternate') }}", false).unwrap_err();
        assert!(e.to_string().contains("roles must alternate"), "{e}");
        let e = render("{% for %}", false).unwrap_err();
        assert!(e.to_string().contains("chat template"), "{e}");
    }

    /// Each of them is a short program that another engine ends too.
    #[test]
    fn what_takes_too_long_or_writes_too_much_is_refused() {
        let steps = "{% for a in range(5000) %}{% for b in range(5000) %}{% endfor %}{% endfor %}";
        let e = render(steps, false).unwrap_err().to_string();
        assert!(e.contains("fuel"), "{e}");
        let long = "{% for a in range(30000) %}{{ '0123456789' * 10 }}{% endfor %}";
        let e = render(long, false).unwrap_err().to_string();
        assert!(e.ends_with("it writes more than 2097152 bytes for 1 messages"), "{e}");
        let shorter = "{% for a in range(20000) %}{{ '0123456789' * 10 }}{% endfor %}";
        assert_eq!(render(shorter, false).unwrap().len(), 2_000_000);
        // What common templates do for a long conversation is far below.
        let special = vec![("eos_token".to_string(), "</s>".to_string())];
        let plain = ChatTemplate::plain(special, false, Path::new("t")).unwrap();
        let messages: Vec<Message> = (0..10_000).map(|_| Message::new("user", "Q")).collect();
        assert_eq!(
            plain.render(&messages, &ChatContext::default(), false).unwrap().len(),
            10_000 * "### Human: Q\n".len()
        );
        let nested = |depth: usize| format!("{{{{ {}1 < 2{} }}}}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(render(&nested(50), false).unwrap(), "True");
        let e = render(&nested(101), false).unwrap_err().to_string();
        assert!(e.contains("brackets nested deeper than 100"), "{e}");
    }

    #[test]
    fn the_plain_layout_ends_answers_with_eos() {
        let special = vec![("bos_token".to_string(), "<s>".to_string()), ("eos_token".into(), "</s>".into())];
        let t = ChatTemplate::plain(special, true, Path::new("t")).unwrap();
        let m = [Message::new("system", "S"), Message::new("user", "Q"), Message::new("assistant", "A")];
        assert_eq!(
            t.render(&m, &ChatContext::default(), false).unwrap(),
            "<s>S\n\n### Human: Q\n### Assistant: A</s>\n"
        );
        assert_eq!(t.render(&m[..2], &ChatContext::default(), true).unwrap(), "<s>S\n\n### Human: Q\n### Assistant:");
    }
}
