//! Values as Python prints them: `str`, `repr`, `json.dumps` and `%` formatting, for templates written for Jinja2.

use std::fmt::{self, Write};

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::budget::{VALUE, fits};
use super::operators::push;
use super::views::{Range, View};

/// A `TypeError` or its like.
pub(super) fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// How deep lists and dicts that are printed may be nested.
const NESTED: usize = 200;

/// A text that ends where it would have more bytes than a value may.
#[derive(Default)]
struct Bounded {
    text: String,
    full: Option<Error>,
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        push(&mut self.text, text).map_err(|e| {
            self.full = Some(e);
            fmt::Error
        })
    }
}

/// `str(value)`. Errors: it is too long, or nested too deep.
pub(super) fn str(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => repr(value),
    }
}

/// `repr(value)`; nothing for what is undefined. Errors: it is too long, or nested too deep.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = Bounded::default();
    // What lists share is written each time, so that a short template can ask for any length.
    match write_repr(value, 0, &mut out) {
        Ok(()) => Ok(out.text),
        Err(_) => {
            Err(out.full.unwrap_or_else(|| refused(format!("a value that is printed is nested deeper than {NESTED}"))))
        }
    }
}

/// Whether it prints under a name of its own.
fn is_view(value: &Value) -> bool {
    value.downcast_object_ref::<View>().is_some() || value.downcast_object_ref::<Range>().is_some()
}

/// Errors: `out` takes no more, or it is nested too deep.
pub(super) fn write_repr(value: &Value, depth: usize, out: &mut dyn Write) -> fmt::Result {
    if depth > NESTED {
        return Err(fmt::Error);
    }
    if let Some(view) = value.downcast_object_ref::<View>() {
        return view.write(depth, out);
    }
    match value.kind() {
        ValueKind::String => out.write_str(&quoted(value.as_str().unwrap_or_default())),
        ValueKind::Number if !value.is_integer() => {
            out.write_str(&float(f64::try_from(value.clone()).unwrap_or(f64::NAN)))
        }
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() && !is_view(value) => {
            let (tuple, count) = (value.is_tuple(), value.len().unwrap_or_default());
            out.write_str(if tuple { "(" } else { "[" })?;
            for (n, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.write_str(if n > 0 { ", " } else { "" })?;
                write_repr(&item, depth + 1, out)?;
            }
            out.write_str(match (tuple, count) {
                (true, 1) => ",)",
                (true, _) => ")",
                _ => "]",
            })
        }
        ValueKind::Map if !value.is_kwargs() => {
            out.write_str("{")?;
            for (n, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.write_str(if n > 0 { ", " } else { "" })?;
                write_repr(&key, depth + 1, out)?;
                out.write_str(": ")?;
                write_repr(&value.get_item(&key).unwrap_or_default(), depth + 1, out)?;
            }
            out.write_str("}")
        }
        _ => write!(out, "{value}"),
    }
}

/// `repr` of a text.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    write_text(text, &mut out);
    out
}

fn write_text(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        // Too long: refused by whoever takes it.
        if out.len() > VALUE {
            break;
        }
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) || c == '\u{ad}' => {
                write!(out, "\\x{:02x}", c as u32).expect("a String takes everything");
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// `repr(float)`: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "nan".into()
        } else if x > 0.0 {
            "inf".into()
        } else {
            "-inf".into()
        };
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("`e` formatting has an exponent");
    let exponent: i32 = exponent.parse().expect("`e` formatting has a number behind it");
    if x == 0.0 || (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// The options of `json.dumps`.
#[derive(Debug, Clone)]
pub(super) struct Json {
    pub(super) ensure_ascii: bool,
    /// What a level is indented by; one line without.
    pub(super) indent: Option<String>,
    /// Between items, and between a key and its value.
    pub(super) separators: (String, String),
    pub(super) sort_keys: bool,
}

impl Json {
    /// `json.dumps(value, ...)`. Errors: a value that JSON has no form for.
    pub(super) fn dump(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(value, 0, &mut out)?;
        fits(out.len())?;
        Ok(out)
    }

    fn write(&self, value: &Value, level: usize, out: &mut String) -> Result<(), Error> {
        fits(out.len())?;
        if level > NESTED {
            return Err(refused(format!("tojson: nested deeper than {NESTED}")));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&json_number(value)),
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            _ if is_view(value) => {
                return Err(refused(format!("{} is not JSON serializable", str(value)?)));
            }
            // What `+` and slices make of lists counts as one.
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items(('[', ']'), items.len(), level, out, |n, out| self.write(&items[n], level + 1, out))?;
            }
            ValueKind::Map => {
                let mut keys = Vec::new();
                for key in value.try_iter()? {
                    keys.push((json_key(&key)?, key));
                }
                if self.sort_keys {
                    keys.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.write_items(('{', '}'), keys.len(), level, out, |n, out| {
                    self.write_text(&keys[n].0, out);
                    push(out, &self.separators.1)?;
                    self.write(&value.get_item(&keys[n].1)?, level + 1, out)
                })?;
            }
            other => return Err(refused(format!("{other} is not JSON serializable"))),
        }
        Ok(())
    }

    fn write_items(
        &self,
        brackets: (char, char),
        count: usize,
        level: usize,
        out: &mut String,
        mut item: impl FnMut(usize, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |level: usize, out: &mut String| -> Result<(), Error> {
            if let Some(indent) = self.indent.as_ref().filter(|_| count > 0) {
                out.push('\n');
                (0..level).try_for_each(|_| push(out, indent))?;
            }
            Ok(())
        };
        out.push(brackets.0);
        for n in 0..count {
            if n > 0 {
                push(out, &self.separators.0)?;
            }
            line(level + 1, out)?;
            item(n, out)?;
        }
        line(level, out)?;
        out.push(brackets.1);
        Ok(())
    }

    fn write_text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            // Too long: refused by `write` or `dump`.
            if out.len() > VALUE {
                break;
            }
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 => write!(out, "\\u{:04x}", c as u32).expect("a String takes everything"),
                c if self.ensure_ascii && !(' '..='~').contains(&c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(out, "\\u{unit:04x}").expect("a String takes everything");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn json_number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()).unwrap_or(f64::NAN) {
        x if x.is_nan() => "NaN".into(),
        x if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        x => float(x),
    }
}

fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Ok(json_number(key)),
        other => Err(refused(format!("keys must be str, int, float, bool or None, not {other}"))),
    }
}

/// `left % right`: numbers by the rules of numbers, texts by printf.
pub(super) fn modulo(left: &Value, right: &Value) -> Result<Value, Error> {
    match left.as_str() {
        Some(format) => percent(format, right).map(Value::from),
        None => numeric_modulo(left, right),
    }
}

fn numeric_modulo(left: &Value, right: &Value) -> Result<Value, Error> {
    let number = |v: &Value| match v.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(v.is_true()))),
        ValueKind::Number => Some(v.clone()),
        _ => None,
    };
    let (Some(a), Some(b)) = (number(left), number(right)) else {
        return Err(refused(format!("unsupported operand types for %: {} and {}", left.kind(), right.kind())));
    };
    if let (true, Some(x), Some(y)) = (a.is_integer() && b.is_integer(), a.as_i64(), b.as_i64()) {
        let rest = i128::from(x).checked_rem(i128::from(y)).ok_or_else(|| refused("modulo by zero"))?;
        let floored = if rest != 0 && (rest < 0) != (y < 0) { rest + i128::from(y) } else { rest };
        return Ok(Value::from(floored as i64));
    }
    let real = |v: Value| f64::try_from(v).map_err(|_| refused("% of a number that is no double"));
    let (x, y) = (real(a)?, real(b)?);
    if y == 0.0 {
        return Err(refused("modulo by zero"));
    }
    let rest = x % y;
    Ok(Value::from(if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest }))
}

/// One `%` of a format.
struct Field {
    left: bool,
    zero: bool,
    sign: Option<char>,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// Widths and precisions beyond this are refused: a template must not fill the memory.
const MOST: usize = 10_000;

/// `format % arguments`.
pub(super) fn percent(format: &str, arguments: &Value) -> Result<String, Error> {
    let tuple: Vec<Value> =
        if arguments.is_tuple() { arguments.try_iter()?.collect() } else { vec![arguments.clone()] };
    let mapping = arguments.kind() == ValueKind::Map;
    let (mut next, mut out, mut chars) = (0, String::new(), format.chars().peekable());
    let mut take = || {
        let value = tuple.get(next).cloned();
        next += 1;
        value.ok_or_else(|| refused("not enough arguments for format string"))
    };
    let mut by_name = false;
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut value = None;
        if chars.peek() == Some(&'(') {
            chars.next();
            let name: String = chars.by_ref().take_while(|&c| c != ')').collect();
            by_name = true;
            let found = if mapping { arguments.get_item(&Value::from(name.as_str()))? } else { Value::UNDEFINED };
            if found.is_undefined() {
                return Err(refused(format!("format: no key {name}")));
            }
            value = Some(found);
        }
        let mut field = Field { left: false, zero: false, sign: None, alternate: false, width: 0, precision: None };
        while let Some(&flag) = chars.peek() {
            match flag {
                '-' => field.left = true,
                '0' => field.zero = true,
                '+' => field.sign = Some('+'),
                ' ' => field.sign = field.sign.or(Some(' ')),
                '#' => field.alternate = true,
                _ => break,
            }
            chars.next();
        }
        let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| -> Result<usize, Error> {
            if chars.peek() == Some(&'*') {
                return Err(refused("format: * is not supported"));
            }
            let mut n = 0usize;
            while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                n = (n * 10 + digit as usize).min(MOST + 1);
                chars.next();
            }
            if n > MOST { Err(refused("format: a width or precision is too large")) } else { Ok(n) }
        };
        field.width = number(&mut chars)?;
        if chars.peek() == Some(&'.') {
            chars.next();
            field.precision = Some(number(&mut chars)?);
        }
        while chars.peek().is_some_and(|c| "hlL".contains(*c)) {
            chars.next();
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some(kind) => {
                let value = match value {
                    Some(value) => value,
                    None => take()?,
                };
                push(&mut out, &field.format(kind, &value)?)?;
            }
            None => return Err(refused("incomplete format")),
        }
    }
    if !by_name && !mapping && next < tuple.len() {
        return Err(refused("not all arguments converted during string formatting"));
    }
    Ok(out)
}

impl Field {
    fn format(&self, kind: char, value: &Value) -> Result<String, Error> {
        let cut = |text: String| match self.precision {
            Some(n) => text.chars().take(n).collect(),
            None => text,
        };
        let (sign, body, numeric) = match kind {
            's' => (String::new(), cut(str(value)?), false),
            'r' | 'a' => (String::new(), cut(repr(value)?), false),
            'c' => (String::new(), character(value)?, false),
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => self.integer(kind, value)?,
            'f' | 'F' | 'e' | 'E' | 'g' | 'G' => self.real(kind, value)?,
            other => return Err(refused(format!("unsupported format character {other:?}"))),
        };
        let room = self.width.saturating_sub(sign.chars().count() + body.chars().count());
        Ok(match (self.left, self.zero && numeric) {
            (true, _) => sign + &body + &" ".repeat(room),
            (false, true) => sign + &"0".repeat(room) + &body,
            (false, false) => " ".repeat(room) + &sign + &body,
        })
    }

    fn sign(&self, negative: bool) -> String {
        if negative { "-".into() } else { self.sign.map(String::from).unwrap_or_default() }
    }

    fn integer(&self, kind: char, value: &Value) -> Result<(String, String, bool), Error> {
        let wrong = || refused(format!("%{kind}: expected a number, got {}", value.kind()));
        let n = match value.kind() {
            ValueKind::Bool => i128::from(value.is_true()),
            ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).map_err(|_| wrong())?,
            ValueKind::Number if "diu".contains(kind) => f64::try_from(value.clone()).map_err(|_| wrong())? as i128,
            _ => return Err(wrong()),
        };
        let (size, prefix) = (n.unsigned_abs(), if self.alternate { kind } else { 'd' });
        let digits = match kind {
            'x' => format!("{size:x}"),
            'X' => format!("{size:X}"),
            'o' => format!("{size:o}"),
            _ => size.to_string(),
        };
        let zeros = "0".repeat(self.precision.unwrap_or(0).saturating_sub(digits.len()));
        let prefix = match prefix {
            'x' => "0x",
            'X' => "0X",
            'o' => "0o",
            _ => "",
        };
        Ok((self.sign(n < 0) + prefix, zeros + &digits, true))
    }

    fn real(&self, kind: char, value: &Value) -> Result<(String, String, bool), Error> {
        let wrong = || refused(format!("%{kind}: expected a number, got {}", value.kind()));
        let x = match value.kind() {
            ValueKind::Bool => f64::from(u8::from(value.is_true())),
            ValueKind::Number => f64::try_from(value.clone()).map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        let precision = self.precision.unwrap_or(6);
        let size = x.abs();
        let body = match kind {
            _ if !x.is_finite() => float(size),
            'f' | 'F' => format!("{size:.precision$}"),
            'e' | 'E' => exponential(size, precision),
            _ => general(size, precision.max(1), self.alternate),
        };
        let body = if kind.is_ascii_uppercase() { body.to_uppercase() } else { body };
        Ok((self.sign(x.is_sign_negative()), body, x.is_finite()))
    }
}

fn exponential(x: f64, precision: usize) -> String {
    let text = format!("{x:.precision$e}");
    let (digits, exponent) = text.split_once('e').expect("`e` formatting has an exponent");
    let exponent: i32 = exponent.parse().expect("`e` formatting has a number behind it");
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `%g`: the shorter of `%e` and `%f` with so many digits, without zeros at the end.
fn general(x: f64, digits: usize, alternate: bool) -> String {
    let text = exponential(x, digits - 1);
    let exponent: i32 = text.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let bare = |text: &str| match alternate || !text.contains('.') {
        true => text.to_owned(),
        false => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
    };
    if (-4..digits as i32).contains(&exponent) {
        return bare(&format!("{x:.*}", (digits as i32 - 1 - exponent) as usize));
    }
    let (mantissa, tail) = text.split_once('e').expect("it was made with one");
    format!("{}e{tail}", bare(mantissa))
}

fn character(value: &Value) -> Result<String, Error> {
    let one = |text: &str| (text.chars().count() == 1).then(|| text.to_owned());
    let found = match value.as_str() {
        Some(text) => one(text),
        None => value.as_i64().and_then(|n| u32::try_from(n).ok()).and_then(char::from_u32).map(String::from),
    };
    found.ok_or_else(|| refused("%c requires an int or a single character"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_pythons() {
        // repr(x) in Python 3.13.
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (123456.789, "123456.789"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (x, text) in cases {
            assert_eq!(float(x), text);
        }
    }

    #[test]
    fn percent_formats_are_pythons() {
        let one = |format: &str, value: Value| percent(format, &value).unwrap();
        assert_eq!(one("%5.1f|", Value::from(2.25)), "  2.2|");
        assert_eq!(one("%-6d|", Value::from(-42)), "-42   |");
        assert_eq!(one("%+05d", Value::from(42)), "+0042");
        assert_eq!(one("%#x", Value::from(255)), "0xff");
        assert_eq!(one("%e", Value::from(12345.678)), "1.234568e+04");
        assert_eq!(one("%g", Value::from(0.00001234)), "1.234e-05");
        assert_eq!(one("%g", Value::from(100000.0)), "100000");
        assert_eq!(one("%.3s|%%", Value::from("abcdef")), "abc|%");
        for bad in ["%d %d", "%q", "%", "%(a)s"] {
            assert!(percent(bad, &Value::from(1)).is_err(), "{bad}");
        }
        assert!(percent("none", &Value::from(1)).is_err());
    }
}
