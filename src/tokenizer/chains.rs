//! `<`, `>`, `<=`, `>=` and `in` of an expression as calls: what Python does not compare is an error there.

use super::jinja::{COMPARE, CONTAINS, Kind, Piece, is_word};

/// A chain of comparisons, `a < b in c`: where it begins, and each operand with the operator before it.
struct Chain {
    start: usize,
    operands: Vec<(String, String)>,
}

/// Comparisons that minijinja makes of more than Python does, as calls; those between operands of a chain hold together.
pub(super) fn compared(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut out = Vec::with_capacity(pieces.len());
    let fresh = |start: usize| Chain { start, operands: vec![(String::new(), String::new())] };
    let next = |from: usize| (from..pieces.len()).find(|&i| pieces[i].kind != Kind::Blank);
    let is = |at: Option<usize>, word: &str| at.is_some_and(|i| pieces[i].kind == Kind::Name && pieces[i].text == word);
    let (mut chain, mut at, mut before) = (fresh(0), 0, "");
    while at < pieces.len() {
        let piece = &pieces[at];
        // Behind a dot or a bar stands a name, whatever it is.
        let named = [".", "|"].contains(&before);
        let mut end = at + 1;
        let mut operator = None;
        let mut boundary = false;
        match piece.kind {
            Kind::Operator => {
                operator = ["<", ">", "<=", ">=", "==", "!="].into_iter().find(|op| *op == piece.text);
                boundary = [",", ":", "=", ";"].contains(&piece.text.as_str());
            }
            Kind::Name if named => {}
            Kind::Name if piece.text == "is" => {
                // The name of a test, which may be `in`, is a part of the operand.
                let negated = next(end).filter(|&i| is(Some(i), "not"));
                end = next(negated.map_or(end, |i| i + 1)).map_or(pieces.len(), |i| i + 1);
            }
            Kind::Name if piece.text == "in" => operator = Some("in"),
            Kind::Name if piece.text == "not" && is(next(end), "in") => {
                operator = Some("not in");
                end = next(end).map_or(end, |i| i + 1);
            }
            Kind::Name => boundary = is_word(piece),
            _ => {}
        }
        if piece.kind != Kind::Blank {
            before = piece.text.as_str();
        }
        match operator {
            Some(operator) => chain.operands.push((operator.to_owned(), String::new())),
            None if boundary => {
                out.extend(chain.written(&pieces[chain.start..at]));
                out.push(piece.clone());
                chain = fresh(end);
            }
            None => {
                let operand = &mut chain.operands.last_mut().expect("a chain has a first operand").1;
                operand.extend(pieces[at..end].iter().map(|piece| piece.text.as_str()));
            }
        }
        at = end;
    }
    out.extend(chain.written(&pieces[chain.start..]));
    out
}

impl Chain {
    /// The pieces it came from, or one that holds the calls.
    fn written(&self, pieces: &[Piece]) -> Vec<Piece> {
        let rewritten = self.operands[1..].iter().any(|(op, _)| !["==", "!="].contains(&op.as_str()));
        // What lacks an operand is minijinja's to refuse.
        if !rewritten || self.operands.iter().any(|(_, operand)| operand.trim().is_empty()) {
            return pieces.to_vec();
        }
        let pair = |pair: &[(String, String)]| {
            let (left, op, right) = (pair[0].1.trim(), pair[1].0.as_str(), pair[1].1.trim());
            match op {
                "in" => format!("{CONTAINS}({left}, {right})"),
                "not in" => format!("(not {CONTAINS}({left}, {right}))"),
                "==" | "!=" => format!("({left} {op} {right})"),
                _ => format!("{COMPARE}('{op}', {left}, {right})"),
            }
        };
        let pairs: Vec<String> = self.operands.windows(2).map(pair).collect();
        let text = if pairs.len() == 1 { pairs[0].clone() } else { format!("({})", pairs.join(" and ")) };
        let blank = |piece: Option<&Piece>| piece.filter(|piece| piece.kind == Kind::Blank).cloned();
        let call = Piece { kind: Kind::Value, text };
        blank(pieces.first()).into_iter().chain([call]).chain(blank(pieces.last())).collect()
    }
}
