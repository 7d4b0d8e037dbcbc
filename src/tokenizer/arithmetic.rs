//! `+`, `~`, `*`, `%` and slices of an expression as calls, so that each is bounded, and `%` is Python's.
//!
//! Precedence is minijinja's, which is Jinja2's: `+` and `-` bind less than `~`, that less than `*`, `/`, `//` and `%`, those less than
//! `**`, and signs, attributes, calls, filters and tests belong to an operand. What is no expression is passed on as it is.

use super::jinja::{ADD, CONCAT, Kind, MODULO, MULTIPLY, NESTED, Piece, SLICED, is_word};

/// Arguments of one call; a longer chain becomes a call in a call.
const ARGUMENTS: usize = 100;

/// An expression that was read: its text, and where it ends.
struct Read {
    text: String,
    end: usize,
    /// Whether the text is not the pieces' own.
    changed: bool,
}

/// The pieces, with the operators in them as calls.
pub(super) fn calls(pieces: Vec<Piece>) -> Vec<Piece> {
    let (mut out, mut at) = (Vec::with_capacity(pieces.len()), 0);
    while at < pieces.len() {
        match sum(&pieces, at) {
            Some(read) if read.changed => {
                out.extend(pieces[at..].iter().take_while(|piece| piece.kind == Kind::Blank).cloned());
                out.push(Piece { kind: Kind::Value, text: read.text });
                at = read.end;
            }
            read => {
                let end = read.map_or(at + 1, |read| read.end);
                out.extend(pieces[at..end].iter().cloned());
                at = end;
            }
        }
    }
    out
}

fn next(pieces: &[Piece], from: usize) -> Option<usize> {
    (from..pieces.len()).find(|&i| pieces[i].kind != Kind::Blank)
}

/// The operator behind an operand, and where it stands.
fn operator<'a>(pieces: &'a [Piece], from: usize, known: &[&str]) -> Option<(usize, &'a str)> {
    let at = next(pieces, from)?;
    let text = pieces[at].text.as_str();
    (pieces[at].kind == Kind::Operator && known.contains(&text)).then_some((at, text))
}

/// Operands with the operators between them, as `join` writes an operand behind what is left of it.
fn chain(
    pieces: &[Piece],
    at: usize,
    operators: &[&str],
    operand: fn(&[Piece], usize) -> Option<Read>,
    join: fn(String, &str, &[String]) -> Option<String>,
) -> Option<Read> {
    let first = operand(pieces, at)?;
    let (mut end, mut changed) = (first.end, first.changed);
    let mut links: Vec<(&str, String)> = Vec::new();
    while let Some((found, symbol)) = operator(pieces, end, operators) {
        let Some(right) = operand(pieces, found + 1) else { break };
        changed |= right.changed;
        end = right.end;
        links.push((symbol, right.text));
    }
    let mut left = first.text;
    for run in links.chunk_by(|a, b| a.0 == b.0) {
        let symbol = run[0].0;
        let operands: Vec<String> = run.iter().map(|(_, text)| text.clone()).collect();
        left = match join(left.clone(), symbol, &operands) {
            Some(text) => {
                changed = true;
                text
            }
            None => operands.iter().fold(left, |left, right| format!("{left} {symbol} {right}")),
        };
    }
    Some(Read { text: left, end, changed })
}

/// A call of all operands, or several in one another.
fn call(function: &str, first: String, more: &[String]) -> String {
    more.chunks(ARGUMENTS).fold(first, |left, some| format!("{function}({left}, {})", some.join(", ")))
}

fn sum(pieces: &[Piece], at: usize) -> Option<Read> {
    chain(pieces, at, &["+", "-"], concatenation, |left, symbol, more| (symbol == "+").then(|| call(ADD, left, more)))
}

fn concatenation(pieces: &[Piece], at: usize) -> Option<Read> {
    chain(pieces, at, &["~"], product, |left, _, more| Some(call(CONCAT, left, more)))
}

fn product(pieces: &[Piece], at: usize) -> Option<Read> {
    chain(pieces, at, &["*", "/", "//", "%"], power, |left, symbol, more| {
        let function = match symbol {
            "*" => MULTIPLY,
            "%" => MODULO,
            _ => return None,
        };
        Some(more.iter().fold(left, |left, right| format!("{function}({left}, {right})")))
    })
}

fn power(pieces: &[Piece], at: usize) -> Option<Read> {
    chain(pieces, at, &["**"], operand, |_, _, _| None)
}

/// Signs, a value, what belongs to it (`.name`, calls, indices and slices), filters and tests.
fn operand(pieces: &[Piece], at: usize) -> Option<Read> {
    let mut read = signed(pieces, at)?;
    while let Some(at) = next(pieces, read.end) {
        let mut end = match (pieces[at].kind, pieces[at].text.as_str()) {
            (Kind::Operator, "|") => dotted(pieces, at + 1)?,
            (Kind::Name, "is") => {
                let negated = next(pieces, at + 1).filter(|&i| pieces[i].text == "not");
                dotted(pieces, negated.unwrap_or(at) + 1)?
            }
            _ => break,
        };
        let test = pieces[at].text == "is";
        let behind = next(pieces, end);
        if let Some(call) = behind.filter(|&i| pieces[i].kind == Kind::Value && pieces[i].text.starts_with('(')) {
            end = call + 1;
        } else if let Some(i) = behind.filter(|&i| test && begins_argument(&pieces[i])) {
            let argument = signed(pieces, i)?;
            read.text.extend(pieces[read.end..i].iter().map(|piece| piece.text.as_str()));
            read.text.push_str(&argument.text);
            read.changed |= argument.changed;
            read.end = argument.end;
            continue;
        }
        read.text.extend(pieces[read.end..end].iter().map(|piece| piece.text.as_str()));
        read.end = end;
    }
    Some(read)
}

/// Whether the argument of a test, without brackets, begins so.
fn begins_argument(piece: &Piece) -> bool {
    match piece.kind {
        Kind::Name => !is_word(piece),
        Kind::Value => true,
        Kind::Operator => ["-", "+"].contains(&piece.text.as_str()),
        Kind::Blank => false,
    }
}

/// Where a filter's or a test's name ends, which may have dots.
fn dotted(pieces: &[Piece], at: usize) -> Option<usize> {
    let mut end = next(pieces, at)? + 1;
    while let Some((dot, _)) = operator(pieces, end, &["."]) {
        end = next(pieces, dot + 1)? + 1;
    }
    Some(end)
}

/// Signs and a value with what belongs to it; slices as calls.
fn signed(pieces: &[Piece], at: usize) -> Option<Read> {
    let mut start = next(pieces, at)?;
    let mut signs = String::new();
    while pieces[start].kind == Kind::Operator && ["-", "+"].contains(&pieces[start].text.as_str()) {
        signs.push_str(&pieces[start].text);
        start = next(pieces, start + 1)?;
    }
    let first = &pieces[start];
    if first.kind == Kind::Operator || is_word(first) {
        return None;
    }
    let mut read = Read { text: first.text.clone(), end: start + 1, changed: false };
    let is_text = |piece: &Piece| piece.kind == Kind::Value && piece.text.starts_with(['\'', '"']);
    // Texts beside each other are one.
    while let Some(at) = next(pieces, read.end).filter(|&at| is_text(first) && is_text(&pieces[at])) {
        read.text.extend(pieces[read.end..=at].iter().map(|piece| piece.text.as_str()));
        read.end = at + 1;
    }
    if makes(first) {
        read.text = format!("{NESTED}({})", read.text);
        read.changed = true;
    }
    while let Some(at) = next(pieces, read.end) {
        let (kind, text) = (pieces[at].kind, pieces[at].text.as_str());
        let end = match kind {
            Kind::Operator if text == "." => next(pieces, at + 1)? + 1,
            Kind::Value if text.starts_with(['(', '[']) => at + 1,
            _ => break,
        };
        read.text.extend(pieces[read.end..end].iter().map(|piece| piece.text.as_str()));
        read.end = end;
        if kind == Kind::Value && text.starts_with('[') && has_colon(text) {
            read.text = format!("{SLICED}({})", read.text);
            read.changed = true;
        }
    }
    read.text.insert_str(0, &signs);
    Some(read)
}

/// Whether it is a list, a dict or a tuple with more in it than constants.
fn makes(piece: &Piece) -> bool {
    if piece.kind != Kind::Value || !piece.text.starts_with(['[', '{', '(']) {
        return false;
    }
    let own = |sign: char| {
        super::literal::depths(&piece.text).any(|(at, depth)| depth == 1 && piece.text[at..].starts_with(sign))
    };
    let named = super::literal::depths(&piece.text)
        .any(|(at, _)| piece.text[at..].starts_with(|c: char| c.is_alphabetic() || c == '_'));
    named && (!piece.text.starts_with('(') || own(','))
}

/// Whether a bracket holds a colon of its own.
fn has_colon(bracket: &str) -> bool {
    super::literal::depths(bracket).any(|(at, depth)| depth == 1 && bracket[at..].starts_with(':'))
}
