//! A chat template's text made ready for minijinja: what Jinja2, as transformers sets it up, means and minijinja has no setting for.
//!
//! * Line ends become `\n`.
//! * `{% generation %}` … `{% endgeneration %}` become a call block of [`GENERATION`], which marks its text or leaves it.
//! * `a % b` becomes `MODULO(a, b)`, since minijinja has no `%` on texts, and `+`, `~`, `*` and slices become calls, since what they
//!   make must be bounded (`arithmetic`).
//! * What makes lists, tuples and dicts, and what sets a namespace's attribute, becomes a call, since their depth must be bounded
//!   (`nesting`).
//! * Each body of a loop, a macro or a block begins with a call that counts what is written there (`bodies`).
//! * `a < b` and the like become `COMPARE('<', a, b)`, and `a in b` becomes `CONTAINS(a, b)`: what Python does not compare is an
//!   error.
//! * Escapes in texts become those that minijinja has.
//! * `include`, `import` and `extends` are refused: transformers has no other template either.
//! * `varargs` and `kwargs` of macros are refused, since minijinja has none.
//! * `{% for x in value %}` becomes `{% for x in ITERATE(value) %}`, which refuses `None` as Python does.
//!
//! Only expressions are looked into, and only as far as these need; errors stay minijinja's, on the same lines.

use std::collections::BTreeSet;

use super::bodies::Bodies;
use super::{arithmetic, chains, literal};

/// The function that a generation block calls.
pub(super) const GENERATION: &str = "__generation";
/// The function of `%`.
pub(super) const MODULO: &str = "__modulo";
/// The function of `<`, `>`, `<=` and `>=`.
pub(super) const COMPARE: &str = "__compare";
/// The function of `in`.
pub(super) const CONTAINS: &str = "__contains";
/// The function around what a loop goes over.
pub(super) const ITERATE: &str = "__iterate";
/// The function of `+`, of two values or more.
pub(super) const ADD: &str = "__add";
/// The function of `~`, of two values or more.
pub(super) const CONCAT: &str = "__concat";
/// The function of `*`.
pub(super) const MULTIPLY: &str = "__multiply";
/// The function around a slice.
pub(super) const SLICED: &str = "__sliced";
/// The function that counts what a body is about to write.
pub(super) const SPEND: &str = "__spend";
/// The function around a list, tuple or dict that is made each time.
pub(super) const NESTED: &str = "__nested";
/// The function around what a namespace's attribute is set to.
pub(super) const ATTRIBUTE: &str = "__attribute";
/// A template that gives one of them another meaning is refused.
const OWN: [&str; 12] =
    [GENERATION, MODULO, COMPARE, CONTAINS, ITERATE, ADD, CONCAT, MULTIPLY, SLICED, SPEND, NESTED, ATTRIBUTE];

/// The template as minijinja takes it. Errors: a sentence about what has no counterpart there.
pub(super) fn prepared(source: &str) -> Result<String, String> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    // Names in the macros, call and generation blocks that are open.
    let mut open_blocks: Vec<BTreeSet<String>> = Vec::new();
    let (mut bodies, mut trims) = (Bodies::default(), false);
    while let Some(at) = rest.find('{') {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        let written = if trims { text.trim_start() } else { text };
        let is_trimmed = ["{{-", "{%-", "{#-"].iter().any(|open| tag.starts_with(open));
        bodies.write(if is_trimmed { written.trim_end() } else { written });
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map(|at| at + 2),
            Some(b'{') => literal::code_end(tag, "}}"),
            Some(b'%') => literal::code_end(tag, "%}"),
            _ => Some(1),
        };
        // What never ends is minijinja's to refuse.
        let Some(end) = end else { return Ok(out + tag) };
        let (tag, after) = tag.split_at(end);
        rest = after;
        trims = ["-}}", "-%}", "-#}"].iter().any(|close| tag.ends_with(close));
        if !matches!(tag.as_bytes().get(1), Some(b'{' | b'%')) {
            out.push_str(tag);
            bodies.write(if tag == "{" { tag } else { "" });
            continue;
        }
        let (open, body, close) = split(tag);
        if literal::nesting(body) > literal::NESTING {
            return Err(format!("brackets nested deeper than {}", literal::NESTING));
        }
        let body = literal::rewritten(body)?;
        let body = body.as_str();
        let word = body.trim().split(|c: char| !c.is_alphanumeric()).next().filter(|_| open.starts_with("{%"));
        match word {
            Some("generation" | "macro" | "call") => open_blocks.push(BTreeSet::new()),
            // minijinja's closures hold what it finds to be read in them, and it overlooks the texts and lists that slices cut and
            // namespaces that are assigned to. Here all are read, where nothing is written.
            Some("endgeneration" | "endmacro" | "endcall") => {
                let names = open_blocks.pop().unwrap_or_default();
                let read: String = names.iter().map(|name| format!("{{{{ {name} }}}}")).collect();
                out.push_str(&format!("{open} if false %}}{read}{{% endif %}}"));
                open_blocks.last_mut().into_iter().for_each(|outer| outer.extend(names.iter().cloned()));
            }
            Some(word @ ("include" | "import" | "from" | "extends")) => {
                return Err(format!("{word}: there is no other template"));
            }
            _ => {}
        }
        if let Some("endfor" | "endmacro" | "endcall" | "endblock" | "endgeneration") = word {
            bodies.close(&mut out);
        }
        bodies.tag(body);
        let names = names(body);
        if let Some(name) = names.iter().find(|name| OWN.contains(&name.as_str())) {
            return Err(format!("the name {name} is taken"));
        }
        if let Some(open) = open_blocks.last_mut() {
            if let Some(name) = names.iter().find(|name| ["varargs", "kwargs"].contains(&name.as_str())) {
                return Err(format!(
                    "{name}, further arguments of a macro, are not known; give the macro arguments by name"
                ));
            }
            open.extend(names);
        }
        out.push_str(open);
        out.push_str(&if open.starts_with("{%") { statement(body) } else { expression(body) });
        out.push_str(close);
        if let Some("for" | "macro" | "call" | "block" | "generation") = word {
            bodies.open(&out, close);
        }
        if body.trim() == "raw" {
            let end = raw_end(rest);
            out.push_str(&rest[..end]);
            bodies.write(&rest[..end]);
            rest = &rest[end..];
        }
    }
    Ok(out + rest)
}

/// The names of variables in a tag, with those of functions, filters and tests, and without words of the language.
fn names(body: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut at, mut attribute) = (0, false);
    while at < body.len() {
        let rest = &body[at..];
        let c = rest.chars().next().expect("at is inside of the text");
        let length = match c {
            '\'' | '"' => literal::end(rest),
            c if c.is_alphanumeric() || c == '_' => {
                rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len())
            }
            c => c.len_utf8(),
        };
        let word = &rest[..length];
        if (c.is_alphabetic() || c == '_') && !attribute && !RESERVED.contains(&word) {
            names.push(word.to_owned());
        }
        attribute = c == '.' || (attribute && c.is_whitespace());
        at += length;
    }
    names
}

/// Words that cannot be read as variables.
const RESERVED: [&str; 45] = [
    "and",
    "or",
    "not",
    "in",
    "is",
    "if",
    "else",
    "elif",
    "endif",
    "for",
    "endfor",
    "set",
    "endset",
    "do",
    "call",
    "endcall",
    "filter",
    "endfilter",
    "with",
    "endwith",
    "recursive",
    "include",
    "import",
    "from",
    "as",
    "true",
    "false",
    "none",
    "True",
    "False",
    "None",
    "macro",
    "endmacro",
    "break",
    "continue",
    "generation",
    "endgeneration",
    "raw",
    "endraw",
    "block",
    "endblock",
    "extends",
    "autoescape",
    "endautoescape",
    "print",
];

/// Where the tag that ends a raw block begins.
fn raw_end(text: &str) -> usize {
    let is_end = |at: usize| text[at + 2..].trim_start_matches(['-', '+']).trim_start().starts_with("endraw");
    text.match_indices("{%").map(|(at, _)| at).find(|&at| is_end(at)).unwrap_or(text.len())
}

/// A tag as its opening, its body and its closing, whitespace signs with the latter two.
fn split(tag: &str) -> (&str, &str, &str) {
    let start = if tag[2..].starts_with(['-', '+']) { 3 } else { 2 };
    let end = tag.len() - 2;
    let end = if end > start && tag[..end].ends_with(['-', '+']) { end - 1 } else { end };
    (&tag[..start], &tag[start..end.max(start)], &tag[end.max(start)..])
}

fn statement(body: &str) -> String {
    let word = body.trim();
    let around = |new: &str| body.replacen(word, new, 1);
    match word {
        "generation" => around(&format!("call {GENERATION}()")),
        "endgeneration" => around("endcall"),
        _ if has_operators(body) || ["for", "set"].iter().any(|begin| word.starts_with(begin)) => {
            let pieces = pieces(body);
            match pieces.iter().find(|p| p.kind != Kind::Blank).map(|p| p.text.as_str()) {
                Some("for") => join(iterated(pieces)),
                Some("set") => join(assigned(pieces)),
                // Behind it stand the arguments of the block, which are no tuple.
                Some("call") => {
                    let word = pieces.iter().position(|p| p.kind != Kind::Blank).map_or(0, |at| at + 1);
                    let behind = pieces[word..].iter().position(|p| p.kind != Kind::Blank).map_or(0, |at| at + 1);
                    let end = word + if pieces[word..].iter().any(|p| p.text.starts_with('(')) { behind } else { 0 };
                    let (head, tail) = pieces.split_at(end.min(pieces.len()));
                    join(head.to_vec()) + &join(rewritten(tail.to_vec()))
                }
                _ => join(rewritten(pieces)),
            }
        }
        _ => body.to_owned(),
    }
}

fn expression(body: &str) -> String {
    if has_operators(body) { join(rewritten(pieces(body))) } else { body.to_owned() }
}

/// Whether there may be an operator that is rewritten.
fn has_operators(text: &str) -> bool {
    text.contains(['%', '<', '>', '+', '~', '*', ':', '[', '{', ',']) || text.contains("in")
}

/// Pieces without the operators that are rewritten.
fn rewritten(pieces: Vec<Piece>) -> Vec<Piece> {
    chains::compared(arithmetic::calls(pieces))
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Kind {
    Blank,
    Name,
    /// A literal, or a bracket with all that it holds.
    Value,
    Operator,
}

#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) kind: Kind,
    pub(super) text: String,
}

fn join(pieces: Vec<Piece>) -> String {
    pieces.into_iter().map(|piece| piece.text).collect()
}

/// The pieces of an expression; what brackets hold is already rewritten.
fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let c = rest.chars().next().expect("at is inside of the text");
        let while_ = |f: &dyn Fn(char) -> bool| rest.find(|c| !f(c)).unwrap_or(rest.len());
        let (kind, length) = match c {
            c if c.is_whitespace() => (Kind::Blank, while_(&char::is_whitespace)),
            '\'' | '"' => (Kind::Value, literal::end(rest)),
            c if c.is_ascii_digit() => (Kind::Value, while_(&|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')),
            c if c.is_alphabetic() || c == '_' => (Kind::Name, while_(&|c| c.is_alphanumeric() || c == '_')),
            '(' | '[' | '{' => (Kind::Value, bracket_end(rest)),
            _ => {
                let double = ["**", "//", "==", "!=", "<=", ">="].iter().any(|op| rest.starts_with(op));
                (Kind::Operator, if double { 2 } else { c.len_utf8() })
            }
        };
        let text = &rest[..length];
        let text = match text.len() > 2 && text.starts_with(['(', '[', '{']) && has_operators(text) {
            true => text[..1].to_owned() + &join(rewritten(self::pieces(&text[1..length - 1]))) + &text[length - 1..],
            false => text.to_owned(),
        };
        pieces.push(Piece { kind, text });
        at += length;
    }
    pieces
}

/// The length of the bracket that `text` begins with.
fn bracket_end(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0usize);
    while at < text.len() {
        let rest = &text[at..];
        let c = rest.chars().next().expect("at is inside of the text");
        match c {
            '\'' | '"' => {
                at += literal::end(rest);
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
        at += c.len_utf8();
    }
    text.len()
}

/// Words between operands: what stands left of one is no part of the operand at its right.
const WORDS: [&str; 19] = [
    "and",
    "or",
    "not",
    "in",
    "is",
    "if",
    "else",
    "elif",
    "for",
    "set",
    "do",
    "call",
    "filter",
    "with",
    "recursive",
    "include",
    "import",
    "from",
    "print",
];
pub(super) fn is_word(piece: &Piece) -> bool {
    piece.kind == Kind::Name && WORDS.contains(&piece.text.as_str())
}

/// `set target = value`: a tuple without brackets, and what a namespace's attribute is set to, as calls.
fn assigned(pieces: Vec<Piece>) -> Vec<Piece> {
    let Some(equals) = pieces.iter().position(|p| p.kind == Kind::Operator && p.text == "=") else {
        return rewritten(pieces);
    };
    let attribute = pieces[..equals].iter().any(|p| p.kind == Kind::Operator && p.text == ".");
    let tuple = pieces[equals..].iter().any(|p| p.kind == Kind::Operator && p.text == ",");
    let value = rewritten(pieces[equals + 1..].to_vec());
    let mut out = pieces[..=equals].to_vec();
    if !(attribute || tuple) || value.iter().all(|p| p.kind == Kind::Blank) {
        out.extend(value);
        return out;
    }
    let blank =
        |piece: Option<&Piece>| piece.filter(|p| p.kind == Kind::Blank).map_or("", |p| p.text.as_str()).to_owned();
    let (before, behind) = (blank(value.first()), blank(value.last()));
    let mut text = join(value).trim().to_owned();
    if tuple {
        text = format!("{NESTED}(({text}))");
    }
    if attribute {
        text = format!("{ATTRIBUTE}({text})");
    }
    out.push(Piece { kind: Kind::Value, text: before + &text + &behind });
    out
}

/// `for target in value if condition`: the value inside of [`ITERATE`].
fn iterated(pieces: Vec<Piece>) -> Vec<Piece> {
    let word = |from: usize, word: &str| {
        (from..pieces.len())
            .find(|&i| pieces[i].kind == Kind::Name && pieces[i].text == word && pieces[i - 1].text != ".")
    };
    let Some(begin) = word(1, "in") else { return rewritten(pieces) };
    let end = word(begin + 1, "if").or_else(|| word(begin + 1, "recursive")).unwrap_or(pieces.len());
    let value = join(rewritten(pieces[begin + 1..end].to_vec()));
    let text = format!(" {ITERATE}({}) ", value.trim());
    let mut out = pieces[..=begin].to_vec();
    out.push(Piece { kind: Kind::Value, text });
    out.extend(rewritten(pieces[end..].to_vec()));
    out
}

#[cfg(test)]
mod tests {
    use super::prepared;
    use crate::random::Random;

    /// Tags that begin, end and nest in any way are passed on or refused.
    #[test]
    fn no_text_is_too_malformed() {
        const PARTS: [&str; 30] = [
            "{",
            "}",
            "{%",
            "{{",
            "{#",
            "%}",
            "}}",
            "#}",
            "-",
            "+",
            "'",
            "\"",
            "\\",
            "(",
            ")",
            "[",
            "]",
            " ",
            "\n",
            "é",
            "a",
            "1",
            ".",
            "%",
            "<",
            " in ",
            "generation",
            "endgeneration",
            "raw",
            "for",
        ];
        let (mut random, mut plain) = (Random::new(1), 0);
        for _ in 0..50_000 {
            let count = 1 + random.bits() % 12;
            let text: String = (0..count).map(|_| PARTS[random.bits() as usize % PARTS.len()]).collect();
            let read = prepared(&text);
            if !text.contains('{') {
                assert_eq!(read, Ok(text));
                plain += 1;
            }
        }
        assert!(plain > 1000, "{plain} without a tag");
    }

    #[test]
    fn remainders_become_calls_of_their_operands() {
        let cases = [
            ("{{ 'a%s' % x }}", "{{ __modulo('a%s', x) }}"),
            ("{{ a + b % c * d }}", "{{ __add(a, __multiply(__modulo(b, c), d)) }}"),
            ("{{ 2 * a % b }}", "{{ __modulo(__multiply(2, a), b) }}"),
            ("{{ a % b % c }}", "{{ __modulo(__modulo(a, b), c) }}"),
            ("{% if loop.index0 % 2 == 0 %}", "{% if __modulo(loop.index0, 2) == 0 %}"),
            ("{% if (a.b['%'] % -c.d(1) | e) != 1 -%}", "{% if (__modulo(a.b['%'], -c.d(1) | e)) != 1 -%}"),
            ("{{ x if n % 2 else '%' }}", "{{ x if __modulo(n, 2) else '%' }}"),
            ("{{ -a % b }}{{ '}}' }} % {# % #}", "{{ __modulo(-a, b) }}{{ '}}' }} % {# % #}"),
            ("{% raw %}{{ a % b }}{% endraw %}{{ a%b }}", "{% raw %}{{ a % b }}{% endraw %}{{ __modulo(a, b) }}"),
        ];
        for (source, expected) in cases {
            assert_eq!(prepared(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn what_makes_values_longer_becomes_calls() {
        let cases = [
            ("{{ a + b - c + d }}", "{{ __add(__add(a, b) - c, d) }}"),
            ("{{ a + b + c ~ d ~ e }}", "{{ __add(a, b, __concat(c, d, e)) }}"),
            (
                "{{ 'x' * 2 ** -n / 3 * -a.b(c + d)[e] }}",
                "{{ __multiply(__multiply('x', 2 ** -n) / 3, -a.b(__add(c, d))[e]) }}",
            ),
            ("{{ a[1:] + b[c + 1:d][0] }}", "{{ __add(__sliced(a[1:]), __sliced(b[__add(c, 1):d])[0]) }}"),
            ("{{ a[{'b': c}] | f(d ~ e) is g }}", "{{ a[__nested({'b': c})] | f(__concat(d, e)) is g }}"),
            ("{{ a is divisibleby 3 + 1 }}", "{{ __add(a is divisibleby 3, 1) }}"),
            (
                "{{ a + b is not defined and -c is in d ~ e }}",
                "{{ __add(a, b is not defined) and __concat(-c is in d, e) }}",
            ),
            ("{% for x in a[1:] + b if x + 1 %}", "{% for x in __iterate(__add(__sliced(a[1:]), b)) if __add(x, 1) %}"),
            (
                "{% set a.b = c + d if e else f ~ g %}",
                "{% set a.b = __attribute(__add(c, d) if e else __concat(f, g)) %}",
            ),
            (
                "{% macro m(a, b='x' + 'y') %}{% endmacro %}",
                "{% macro m(a, b=__add('x', 'y')) %}{% if false %}{{ a }}{{ b }}{{ m }}{% endif %}{% endmacro %}",
            ),
            ("{{ f(*a, **b) + -1 }}{{ 'a' 'b' + c }}", "{{ __add(f(*a, **b), -1) }}{{ __add('a' 'b', c) }}"),
            (
                "{% set a, b = c , d %}{% set a.b = c, [1] %}",
                "{% set a, b = __nested((c , d)) %}{% set a.b = __attribute(__nested((c, [1]))) %}",
            ),
            (
                "{% call(x, y) f([z]) %}{% set (a, b) = (c, 1) %}",
                "{% call(x, y) f(__nested([z])) %}{% set (a, b) = __nested((c, 1)) %}",
            ),
            ("{{ a + }}{{ + }}{{ a - b / c // d }}", "{{ a + }}{{ + }}{{ a - b / c // d }}"),
        ];
        for (source, expected) in cases {
            assert_eq!(prepared(source).unwrap(), expected, "{source}");
        }
        let long = prepared(&format!("{{{{ a{} }}}}", " + a".repeat(150))).unwrap();
        assert!(long.starts_with("{{ __add(__add(a, a,"), "{long}");
    }

    #[test]
    fn bodies_say_what_they_write() {
        let cases = [
            (
                "{% for x in y %}\n a {{ x }}{% endfor %}",
                "{% for x in __iterate(y) %}{% do __spend(4) %}\n a {{ x }}{% endfor %}",
            ),
            (
                "{%- for x in y -%}\n a {%- if x -%} b{% set z = [x, x] %}{% endif %}{%- endfor -%} c",
                "{%- for x in __iterate(y) -%}{% do __spend(194) -%}\n a {%- if x -%} b{% set z = __nested([x, x]) %}{% endif %}{%- endfor -%} c",
            ),
            (
                "{% for x in y %}a{% for z in x +%}bb{% endfor %}c{% endfor %}",
                "{% for x in __iterate(y) %}{% do __spend(2) %}a{% for z in __iterate(x) +%}{% do __spend(2) +%}bb{% endfor %}c{% endfor %}",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(prepared(source).unwrap(), expected, "{source}");
        }
        for bad in ["{{ __spend(0) }}", "{% macro __spend(n) %}{% endmacro %}", "{% include 'default' %}"] {
            assert!(prepared(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn comparisons_become_calls_of_their_operands() {
        let cases = [
            ("{{ a < b }}", "{{ __compare('<', a, b) }}"),
            ("{{ a not  in b }}", "{{ (not __contains(a, b)) }}"),
            ("{{ a <= b < c == d }}", "{{ (__compare('<=', a, b) and __compare('<', b, c) and (c == d)) }}"),
            (
                "{% if not a in b and c is in d or e.in > 1 -%}",
                "{% if not __contains(a, b) and c is in d or __compare('>', e.in, 1) -%}",
            ),
            (
                "{{ 'x' if a.b | length > 1 + 2 else [c in d, {'k': e is not in f}] }}",
                "{{ 'x' if __compare('>', a.b | length, __add(1, 2)) else __nested([__contains(c, d), __nested({'k': e is not in f})]) }}",
            ),
            ("{% for x in y if x % 2 < 1 %}", "{% for x in __iterate(y) if __compare('<', __modulo(x, 2), 1) %}"),
            ("{% set a, b = c in d, 'in' %}", "{% set a, b = __nested((__contains(c, d), 'in')) %}"),
            ("{{ f(x=a in b, y=min) == 'a < b' }}", "{{ f(x=__contains(a, b), y=min) == 'a < b' }}"),
            ("{{ a < }}", "{{ a < }}"),
        ];
        for (source, expected) in cases {
            assert_eq!(prepared(source).unwrap(), expected, "{source}");
        }
        let error = prepared("{% macro f(a) %}{{ a }}{{ varargs }}{% endmacro %}").unwrap_err();
        assert!(error.starts_with("varargs"), "{error}");
        assert!(prepared("{{ kwargs }}{% macro f(a) %}{{ a.kwargs }}{% endmacro %}").is_ok());
    }

    #[test]
    fn loops_generation_blocks_and_line_ends() {
        let cases = [
            ("{%- for a, b in c.items() if a % 2 %}", "{%- for a, b in __iterate(c.items()) if __modulo(a, 2) %}"),
            ("{% for x in ['if'] recursive -%}", "{% for x in __iterate(['if']) recursive -%}"),
            (
                "{%- generation -%}\r\n{%- endgeneration %}\r",
                "{%- call __generation() -%}\n{%- if false %}{% endif %}{%- endcall %}\n",
            ),
            (
                "{% generation %}{% set a.b = c['d'] %}{% endgeneration %}",
                "{% call __generation() %}{% set a.b = __attribute(c['d']) %}{% if false %}{{ a }}{{ c }}{% endif %}{% endcall %}",
            ),
            ("{{ {'a': {'b': 1}}.a }}", "{{ {'a': {'b': 1}}.a }}"),
            ("{% for", "{% for"),
            ("{{ 'open", "{{ 'open"),
        ];
        for (source, expected) in cases {
            assert_eq!(prepared(source).unwrap(), expected, "{source}");
        }
    }
}
