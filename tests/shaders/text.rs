//! What a vendor's compiler refuses in the HLSL or MSL that naga wrote without complaint, read from the text alone.

use super::written::Written;
use std::collections::BTreeSet;

/// The words of a list; what follows a `#` is a comment.
pub fn words(list: &str) -> BTreeSet<&str> {
    list.lines().flat_map(|line| line.split('#').next().unwrap().split_whitespace()).collect()
}

/// Fails where a function is defined twice, or something bears a reserved name.
pub fn check(what: &str, written: &Written, reserved: &BTreeSet<&str>) {
    let tokens = tokens(std::str::from_utf8(&written.bytes).unwrap());
    let mut headers = BTreeSet::new();
    for header in function_headers(&tokens) {
        assert!(headers.insert(header.clone()), "{what}: the function {header} is defined twice");
    }
    let entry = format!("{}(", written.entry);
    assert!(headers.iter().any(|header| header.starts_with(&entry)), "{what}: {entry}) is none of {headers:?}");
    for name in declared(&tokens) {
        assert!(
            !reserved.contains(name),
            "{what}: `{name}` is a keyword or a namespace there; rename it in the shader"
        );
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names and numbers, `::`, and single signs; without comments and preprocessor lines.
fn tokens(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let mut rest = line.split("//").next().unwrap().trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let sign = if rest.starts_with("::") { 2 } else { first.len_utf8() };
            let (token, after) = rest.split_at(word.max(if word == 0 { sign } else { 0 }));
            found.push(token);
            rest = after.trim_start();
        }
    }
    found
}

/// `name(type, type)` of each function that is defined: without return types, names of parameters, semantics and attributes.
fn function_headers(tokens: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (i, &token) in tokens.iter().enumerate() {
        if depth == 0 && token == "{" {
            found.extend(function_header(&tokens[start..i]));
        }
        match token {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 && matches!(token, ";" | "}") {
            start = i + 1;
        }
    }
    found
}

fn function_header(tokens: &[&str]) -> Option<String> {
    let mut bare = Vec::new();
    let mut brackets = 0;
    for &token in tokens {
        brackets += i32::from(token == "[");
        if brackets == 0 {
            bare.push(token);
        }
        brackets -= i32::from(token == "]");
    }
    let open = bare.iter().position(|&token| token == "(")?;
    if open == 0 || matches!(bare[0], "struct" | "cbuffer") {
        return None;
    }
    let (mut types, mut parameter, mut depth) = (Vec::new(), Vec::new(), 0);
    for &token in &bare[open + 1..] {
        match token {
            "," | ")" if depth == 0 => {
                let end = parameter.iter().position(|&t| t == ":").unwrap_or(parameter.len());
                types.push(parameter[..end.saturating_sub(1)].join(" "));
                parameter.clear();
                if token == ")" {
                    break;
                }
                continue;
            }
            "(" | "<" => depth += 1,
            ")" | ">" => depth -= 1,
            _ => {}
        }
        parameter.push(token);
    }
    Some(format!("{}({})", bare[open - 1], types.join(", ")))
}

/// Names that stand where a declaration has its name: after a type, and before what ends or continues a declaration.
fn declared<'a>(tokens: &[&'a str]) -> Vec<&'a str> {
    let mut found = Vec::new();
    for three in tokens.windows(3) {
        let [before, name, after] = [three[0], three[1], three[2]];
        let after_word = is_name(before) && !matches!(before, "return" | "else");
        let after_type = matches!(before, ">" | "&" | "*") && after != "(";
        if is_name(name) && (after_word || after_type) && ["(", ";", "=", ",", ")", "[", ":", "{"].contains(&after) {
            found.push(name);
        }
    }
    found
}

#[test]
fn texts_are_read_as_written() {
    let text = "cbuffer params : register(b0) { Params params; }\n#define X int dx(\nfloat4 ZeroValuefloat4() { return (float4)0; }\n\
                uint naga_div(uint lhs, uint rhs) { return dx; } int naga_div(int lhs, int rhs) { if (a) {} else if (b) {} }\n\
                [numthreads(64, 1, 1)]\nvoid main(uint3 wg : SV_GroupID, metal::array<uint, 4> x [[buffer(0)]]) { uint dy = 1; }";
    let tokens = tokens(text);
    let headers =
        ["ZeroValuefloat4()", "naga_div(uint, uint)", "naga_div(int, int)", "main(uint3, metal :: array < uint , 4 >)"];
    assert_eq!(function_headers(&tokens), headers);
    let names = declared(&tokens);
    for name in ["params", "ZeroValuefloat4", "naga_div", "lhs", "rhs", "main", "wg", "dy"] {
        assert!(names.contains(&name), "{name} of {names:?}");
    }
    assert!(!names.contains(&"dx") && !names.contains(&"if"), "{names:?}");
}

fn main_after(text: &str) -> Written {
    Written { bytes: format!("{text} void main() {{ }}").into_bytes(), entry: "main".to_owned() }
}

#[test]
#[should_panic(expected = "the function ZeroValuefloat4() is defined twice")]
fn a_function_defined_twice_is_found() {
    let twice = "float4 ZeroValuefloat4() { return (float4)0; } ".repeat(2);
    check("x", &main_after(&twice), &words(""));
}

#[test]
#[should_panic(expected = "`dx` is a keyword or a namespace there")]
fn a_reserved_name_is_found() {
    check("x", &main_after("RWByteAddressBuffer dx : register(u0);"), &words("# namespaces\nvk dx"));
}
