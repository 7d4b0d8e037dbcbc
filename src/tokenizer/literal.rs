//! Where the texts, brackets and tags of a template end, and text literals: Python's escapes, written as those that minijinja reads.

/// The length of the text literal that `text` begins with.
pub(super) fn end(text: &str) -> usize {
    let quote = text.chars().next().unwrap_or('"');
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// How deep brackets may be nested; minijinja's own limit, for all it reads, is somewhat higher.
pub(super) const NESTING: usize = 100;

/// The places of a tag outside of texts, and how many brackets are open there, a bracket of the place itself included.
pub(super) fn depths(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let (mut at, mut depth) = (0, 0usize);
    std::iter::from_fn(move || {
        loop {
            let c = text[at..].chars().next()?;
            let place = at;
            match c {
                '\'' | '"' => {
                    at += end(&text[at..]);
                    continue;
                }
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            at += c.len_utf8();
            return Some((place, depth));
        }
    })
}

/// How deep the brackets of a tag's body are nested.
pub(super) fn nesting(body: &str) -> usize {
    depths(body).map(|(_, depth)| depth).max().unwrap_or_default()
}

/// Where `close` ends the tag that `text` begins with: outside of texts and brackets.
pub(super) fn code_end(text: &str, close: &str) -> Option<usize> {
    let body = text.get(2..)?;
    // The bracket of `}}` closes none: nothing is open before it.
    let mut before = 0;
    let at = depths(body).find_map(|(at, depth)| {
        let ends = before == 0 && body[at..].starts_with(close);
        before = depth;
        ends.then_some(at)
    });
    at.map(|at| 2 + at + close.len())
}

/// A tag's body with its literals for minijinja, which has fewer escapes. Line ends that an escape swallows stand behind the
/// literal, so that what follows keeps its line. Errors: a sentence about an escape that has no text.
pub(super) fn rewritten(body: &str) -> Result<String, String> {
    let (mut out, mut rest) = (String::with_capacity(body.len()), body);
    while let Some(at) = rest.find(['\'', '"']) {
        out.push_str(&rest[..at]);
        let literal = &rest[at..][..end(&rest[at..])];
        rest = &rest[at + literal.len()..];
        let quote = &literal[..1];
        match literal[1..].strip_suffix(quote) {
            Some(inner) if inner.contains('\\') => {
                let text = decoded(inner)?;
                let lost = inner.matches('\n').count() - text.matches('\n').count().min(inner.matches('\n').count());
                let text = text.replace('\\', "\\\\").replace(quote, &format!("\\{quote}"));
                out.push_str(&format!("{quote}{text}{quote}{}", "\n".repeat(lost)));
            }
            _ => out.push_str(literal),
        }
    }
    Ok(out + rest)
}

/// What Python makes of the escapes in a literal; one that it does not know stays as it is written.
fn decoded(inner: &str) -> Result<String, String> {
    let (mut out, mut rest) = (String::with_capacity(inner.len()), inner);
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let Some(c) = after.chars().next() else { return Err("a text ends with a backslash".into()) };
        let mut length = c.len_utf8();
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            '0'..='7' => {
                length = after.bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
                out.push(character(&after[..length], 8)?);
            }
            'x' | 'u' | 'U' => {
                let digits = [('x', 2), ('u', 4), ('U', 8)].into_iter().find(|(name, _)| *name == c).map_or(0, |d| d.1);
                length = 1 + digits;
                out.push(character(after.get(1..length).unwrap_or_default(), 16)?);
            }
            'N' => return Err("\\N{...}, a character by its name, is not known; write \\u and its number".into()),
            c => out.extend(['\\', c]),
        }
        rest = &after[length..];
    }
    Ok(out + rest)
}

fn character(digits: &str, base: u32) -> Result<char, String> {
    let number = digits.bytes().all(|b| b.is_ascii_alphanumeric()).then(|| u32::from_str_radix(digits, base).ok());
    number
        .flatten()
        .and_then(char::from_u32)
        .ok_or_else(|| format!("the escape of a text with the digits {digits:?} is no character"))
}

#[cfg(test)]
mod tests {
    use super::rewritten;

    #[test]
    fn escapes_are_pythons() {
        // Each beside what Python 3.11 reads, with the escapes that minijinja has.
        for (source, expected) in [
            (r"'a\q\/'", r"'a\\q\\/'"),
            (r"'\x41\101\u0041\U00000041'", "'AAAA'"),
            ("f('a\\\nb', x)", "f('ab'\n, x)"),
            (r#""it's \"so\" \\""#, r#""it's \"so\" \\""#),
            (r"'\0'", "'\0'"),
            (r"'\7\18'", "'\u{7}\u{1}8'"),
            (r"'\n'", "'\n'"),
            ("'no escape' ~ x", "'no escape' ~ x"),
            (r"'open \n", r"'open \n"),
        ] {
            assert_eq!(rewritten(source).unwrap(), expected, "{source}");
        }
        for bad in [r"'\N{BULLET}'", r"'\xg1'", r"'\u12'", r"'\ud83d'", r"'\x+1'"] {
            assert!(rewritten(bad).is_err(), "{bad}");
        }
    }
}
