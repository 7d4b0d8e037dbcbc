//! What a template writes each time that a loop, a macro or a block goes through its body: minijinja writes the texts between tags by
//! itself, so each body begins with a call of [`SPEND`] that says how many bytes they have.

use super::budget::ITEM;
use super::jinja::SPEND;

/// A body that is open.
struct Body {
    /// Behind the tag that opens it, in the template that is made.
    at: usize,
    /// How that tag closes: the call trims what stands behind it likewise.
    close: String,
    bytes: usize,
}

/// The bodies that are open, the innermost last.
#[derive(Default)]
pub(super) struct Bodies(Vec<Body>);

impl Bodies {
    /// A body begins where the template that is made now ends.
    pub(super) fn open(&mut self, out: &str, close: &str) {
        self.0.push(Body { at: out.len(), close: close.to_owned(), bytes: 0 });
    }

    /// What the innermost body writes.
    pub(super) fn write(&mut self, text: &str) {
        self.spend(text.len());
    }

    /// A tag in the innermost body: lists and dicts that are written there are made each time.
    pub(super) fn tag(&mut self, body: &str) {
        self.spend(3 * ITEM * items(body));
    }

    fn spend(&mut self, bytes: usize) {
        if let Some(body) = self.0.last_mut() {
            body.bytes += bytes;
        }
    }

    /// The innermost body ends.
    pub(super) fn close(&mut self, out: &mut String) {
        if let Some(body) = self.0.pop().filter(|body| body.bytes > 0) {
            out.insert_str(body.at, &format!("{{% do {SPEND}({}) {}", body.bytes, body.close));
        }
    }
}

/// How many items the lists, tuples and dicts of a tag have.
fn items(body: &str) -> usize {
    let (mut at, mut open, mut count) = (0, Vec::new(), 0);
    // Whether a bracket would begin a value, and is no index and no call.
    let mut begins = true;
    while let Some(c) = body[at..].chars().next() {
        let rest = &body[at..];
        let mut length = c.len_utf8();
        match c {
            c if c.is_whitespace() => {}
            '\'' | '"' => {
                length = super::literal::end(rest);
                begins = false;
            }
            '[' | '{' | '(' => {
                open.push(begins);
                count += usize::from(begins);
                begins = true;
            }
            ']' | '}' | ')' => {
                open.pop();
                begins = false;
            }
            c if c.is_alphanumeric() || c == '_' => {
                length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
                begins = ["in", "and", "or", "not", "if", "else", "elif", "is", "set"].contains(&&rest[..length]);
            }
            c => {
                count += usize::from(c == ',' && open.last() == Some(&true));
                begins = c != '.';
            }
        }
        at += length;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::items;

    #[test]
    fn items_are_those_of_lists_tuples_and_dicts() {
        for (body, count) in [
            ("x[1] + f(a, b, c)", 0),
            (" set x = [a, b, {'k': c, 'l': d}] ", 5),
            ("for a in [b, '[,,'] ", 2),
            ("x.y[0](a)[b] ~ (c, d)", 2),
        ] {
            assert_eq!(items(body), count, "{body}");
        }
    }
}
