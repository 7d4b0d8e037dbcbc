//! Chat templates: conversations to text, as transformers renders them.

use std::path::Path;

use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, syntax::SyntaxConfig};
use serde::{Deserialize, Serialize};

use super::clock::Clock;
use crate::error::{Error, Result};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Further fields, which the template may read (`reasoning_content`, `tool_calls`, ...).
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A turn without further fields.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), extra: serde_json::Map::new() }
    }
}

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

/// A compiled chat template with the special tokens it may name.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    special: Vec<(String, String)>,
    /// For messages: where the template came from.
    path: std::path::PathBuf,
}

impl ChatTemplate {
    /// Compiles `source` in transformers' environment: `trim_blocks`, `lstrip_blocks`, loop controls, Python's string
    /// and dict methods, `raise_exception`, `strftime_now` and a `tojson` that writes as Python does.
    ///
    /// `special` are names and texts of special tokens (`bos_token`, ...). `{% generation %}` marks are accepted and
    /// have no effect. Time is in UTC and taken once, here, so that all rows of a run agree.
    /// Errors: [`Error::Format`] with the template's line.
    pub fn new(source: &str, special: Vec<(String, String)>, path: &Path) -> Result<ChatTemplate> {
        let mut env = Environment::new();
        env.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(|e| Error::format(path, format!("chat template: {e}")))?,
        );
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        let clock = Clock::now();
        env.add_function("strftime_now", move |format: String| clock.format(&format));
        env.add_filter("tojson", to_json);
        env.add_template_owned("chat", without_generation_marks(source))
            .map_err(|e| Error::format(path, format!("chat template: {e}")))?;
        Ok(ChatTemplate { env, source: source.to_string(), special, path: path.to_path_buf() })
    }

    /// The layout for models without a template: `### Human: …`, `### Assistant: …` with the end-of-sequence token
    /// after each answer, and the beginning-of-sequence token first if `with_bos`.
    pub fn plain(special: Vec<(String, String)>, with_bos: bool, path: &Path) -> Result<ChatTemplate> {
        let bos = if with_bos { "{{- bos_token -}}\n" } else { "" };
        ChatTemplate::new(&format!("{bos}{PLAIN}"), special, path)
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as text; with `add_generation_prompt`, up to where the assistant's answer begins.
    ///
    /// Errors: [`Error::Format`] with what the template refused (many refuse two turns of one role in a row).
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.env.get_template("chat").map_err(|e| self.error(e))?;
        let mut context: Vec<(&str, Value)> = vec![
            ("messages", Value::from(Serde(messages))),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        context.extend(self.special.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))));
        template.render(Value::from_pairs(context)).map_err(|e| self.error(e))
    }

    fn error(&self, e: minijinja::Error) -> Error {
        let line = e.line().map(|l| format!(" (line {l})")).unwrap_or_default();
        Error::format(
            &self.path,
            format!("chat template{line}: {}", e.detail().map_or_else(|| e.to_string(), String::from)),
        )
    }
}

/// Turns `{% generation %}` … `{% endgeneration %}`, a tag of transformers, into an `if` that always holds, which keeps
/// the whitespace rules of the tags.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        match tag[2..end].trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=…)`: `", "` and `": "` between items unless indented.
fn to_json(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(n) => {
            let spaces = " ".repeat(n.min(64));
            let format = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, format))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonSpacing)),
    };
    written.map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let text = String::from_utf8(out).map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(text))
}

struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, prompt: bool) -> Result<String> {
        let special = vec![("bos_token".to_string(), "<s>".to_string()), ("eos_token".into(), "</s>".into())];
        ChatTemplate::new(source, special, Path::new("t"))?.render(&[Message::new("user", "a \"b\" <é>")], prompt)
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

    #[test]
    fn the_plain_layout_ends_answers_with_eos() {
        let special = vec![("bos_token".to_string(), "<s>".to_string()), ("eos_token".into(), "</s>".into())];
        let t = ChatTemplate::plain(special, true, Path::new("t")).unwrap();
        let m = [Message::new("system", "S"), Message::new("user", "Q"), Message::new("assistant", "A")];
        assert_eq!(t.render(&m, false).unwrap(), "<s>S\n\n### Human: Q\n### Assistant: A</s>\n");
        assert_eq!(t.render(&m[..2], true).unwrap(), "<s>S\n\n### Human: Q\n### Assistant:");
    }
}
