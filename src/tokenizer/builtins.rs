//! Filters, tests, functions and methods as Jinja2 and Python have them, where minijinja differs or has none.

use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, from_args};
use minijinja::{Environment, Error, State};

use super::budget::{self, Counted, fits, fits_items, keep, provide};
use super::jinja::{ITERATE, MODULO};
use super::operators::{self, push};
use super::python::{self, Json, refused};
use super::views::{self, Range, View};
use super::{comparison, filters, nesting};

/// Registers everything.
pub(super) fn register(env: &mut Environment<'static>) {
    env.set_formatter(|out, state, value| {
        if value.is_undefined() {
            return Ok(());
        }
        let text = python::str(value)?;
        budget::write(state, text.len())?;
        out.write_str(&text).map_err(Error::from)
    });
    env.set_unknown_method_callback(method);
    provide(env, Counted::Function, MODULO, |left: Value, right: Value| python::modulo(&left, &right));
    env.add_function(ITERATE, iterate);
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(refused(python::str(&message)?))
    });
    provide(env, Counted::Maker, "cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    provide(env, Counted::Maker, "dict", dict);
    provide(env, Counted::Maker, "namespace", minijinja::functions::namespace);
    provide(env, Counted::Maker, "joiner", minijinja_contrib::globals::joiner);
    provide(env, Counted::Filter, "tojson", to_json);
    provide(env, Counted::Filter, "length", length);
    provide(env, Counted::Filter, "count", length);
    provide(env, Counted::Filter, "string", |value: Value| text_of(&value));
    provide(env, Counted::Filter, "join", join);
    provide(env, Counted::Filter, "trim", trim);
    provide(env, Counted::Filter, "truncate", truncate);
    provide(env, Counted::Filter, "default", default);
    provide(env, Counted::Filter, "d", default);
    provide(env, Counted::Filter, "replace", replace);
    provide(env, Counted::Filter, "int", int);
    provide(env, Counted::Filter, "float", |value: Value, default: Option<Value>| {
        let read = number(&value).or_else(|| value.as_str().and_then(|t| strip(t).parse().ok()));
        read.map(Value::from).or(default).unwrap_or_else(|| Value::from(0.0))
    });
    provide(env, Counted::Filter, "attr", |value: Value, name: String| match value.kind() {
        ValueKind::Map => Ok(Value::UNDEFINED),
        _ => value.get_attr(&name),
    });
    provide(env, Counted::Filter, "center", |value: Value, width: Option<i64>| {
        padded(&python::str(&value)?, "center", &[Value::from(width.unwrap_or(80))])
    });
    provide(env, Counted::Filter, "striptags", minijinja_contrib::filters::striptags);
    provide(env, Counted::Filter, "wordcount", |value: Value| {
        let letter = |c: char| c.is_alphanumeric() || c == '_';
        Ok::<_, Error>(python::str(&value)?.split(|c| !letter(c)).filter(|word| !word.is_empty()).count())
    });
    // Jinja2 has none of these, so templates that name them are refused there.
    for name in ["split", "lines", "bool", "chain", "zip", "pprint"] {
        env.remove_filter(name);
    }
    for name in ["startingwith", "endingwith", "safe"] {
        env.remove_test(name);
    }
    env.remove_global("debug");
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_test("sequence", |value: &Value| {
        value.is_undefined()
            || matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
            || value.downcast_object_ref::<Range>().is_some()
    });
    env.add_test("integer", |value: &Value| value.kind() == ValueKind::Number && value.is_integer());
    env.add_test("callable", is_callable);
    comparison::register(env);
    views::register(env);
    operators::register(env);
    nesting::register(env);
    filters::register(env);
}

/// What a loop goes over: anything but `None`. A text goes by its characters.
fn iterate(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::None => Err(refused("'NoneType' object is not iterable")),
        _ => Ok(value),
    }
}

fn is_callable(value: &Value) -> bool {
    // An undefined value can be called in Jinja2, to refuse.
    let object = value.as_object().map_or("", |object| object.type_name());
    value.is_undefined() || value.kind() == ValueKind::Plain || object.ends_with("::Macro")
}

/// Python's `dict(pairs, name=value)`.
fn dict(items: Option<Value>, more: Kwargs) -> Result<Value, Error> {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    match items {
        None => {}
        Some(map) if map.kind() == ValueKind::Map => {
            for key in map.try_iter()? {
                pairs.push((key.clone(), map.get_item(&key)?));
            }
        }
        Some(list) => {
            for pair in list.try_iter()? {
                pairs.push((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?));
            }
        }
    }
    for name in more.args() {
        pairs.push((Value::from(name), more.get(name)?));
    }
    Ok(Value::from_pairs(pairs))
}

fn default(value: Value, other: Option<Value>, truth: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let other = other.or(options.get::<Option<Value>>("default_value")?).unwrap_or_else(|| Value::from(""));
    let truth = truth.or(options.get::<Option<Value>>("boolean")?).is_some_and(|v| v.is_true());
    options.assert_all_used()?;
    Ok(if value.is_undefined() || (truth && !value.is_true()) { other } else { value })
}

/// `str(value)`, and nothing for what is undefined.
fn text_of(value: &Value) -> Result<String, Error> {
    if value.is_undefined() { Ok(String::new()) } else { python::str(value) }
}

fn replace(value: Value, old: Value, new: Value, count: Option<i64>) -> Result<String, Error> {
    replaced(&text_of(&value)?, &text_of(&old)?, &text_of(&new)?, count)
}

/// `text.replace(old, new, count)`. Errors: it grows too long.
fn replaced(text: &str, old: &str, new: &str, count: Option<i64>) -> Result<String, Error> {
    let most = count.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let found = text.matches(old).count().min(most);
    fits(text.len().saturating_add(found.saturating_mul(new.len().saturating_sub(old.len()))))?;
    Ok(text.replacen(old, new, found))
}

/// A number or a truth value as a double.
fn number(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// Jinja2's `int(value, default=0, base=10)`.
fn int(value: Value, default: Option<Value>, base: Option<u32>, options: Kwargs) -> Result<Value, Error> {
    let default = default.or(options.get::<Option<Value>>("default")?).unwrap_or_else(|| Value::from(0));
    let base = base.or(options.get::<Option<u32>>("base")?).unwrap_or(10);
    options.assert_all_used()?;
    if value.kind() == ValueKind::Number && value.is_integer() {
        return Ok(value);
    }
    if let Some(x) = number(&value) {
        return Ok(if x.is_finite() { Value::from(x.trunc() as i64) } else { default });
    }
    let Some(text) = value.as_str().map(strip) else { return Ok(default) };
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix = match base {
        16 => "0x",
        8 => "0o",
        2 => "0b",
        _ => "",
    };
    let lower = digits.to_lowercase();
    let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
    let whole = (2..=36).contains(&base).then(|| i64::from_str_radix(digits, base).ok()).flatten();
    let real = || text.parse::<f64>().ok().filter(|x| x.is_finite()).map(|x| x.trunc() as i64);
    Ok(whole.map(|n| sign * n).or_else(real).map_or(default, Value::from))
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn to_json(value: Value, positional: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let option = |n: usize, name: &str| -> Result<Option<Value>, Error> {
        let given = positional.get(n).cloned();
        Ok(given.or(options.get::<Option<Value>>(name)?).filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let truth = |v: Option<Value>| v.is_some_and(|v| v.is_true());
    let ensure_ascii = truth(option(0, "ensure_ascii")?);
    let indent = match option(1, "indent")? {
        None => None,
        Some(v) if v.as_str().is_some() => v.as_str().map(str::to_owned),
        Some(v) => Some(" ".repeat(usize::try_from(v.as_i64().unwrap_or(0).max(0)).unwrap_or(0).min(64))),
    };
    let separators = match option(2, "separators")? {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            let text = |n: usize| pair.get(n).and_then(Value::as_str).map(str::to_owned);
            let (2, Some(item), Some(key)) = (pair.len(), text(0), text(1)) else {
                return Err(refused("tojson: separators: expected two texts"));
            };
            (item, key)
        }
    };
    let sort_keys = truth(option(3, "sort_keys")?);
    options.assert_all_used()?;
    if value.is_undefined() {
        return Err(refused("tojson: the value is undefined"));
    }
    Json { ensure_ascii, indent, separators, sort_keys }.dump(&value)
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| refused(format!("object of type {} has no len()", value.kind())))
}

fn join(value: Value, separator: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let separator = separator.or(options.get::<Option<Value>>("d")?).map(|v| python::str(&v));
    let separator = separator.transpose()?.unwrap_or_default();
    let attribute: Option<String> = options.get("attribute")?;
    options.assert_all_used()?;
    if value.is_none() {
        return Err(refused("'NoneType' object is not iterable"));
    }
    let mut out = String::new();
    for (n, item) in value.try_iter()?.enumerate() {
        let item = match &attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        };
        push(&mut out, if n > 0 { &separator } else { "" })?;
        push(&mut out, &text_of(&item)?)?;
    }
    Ok(out)
}

fn trim(value: Value, characters: Option<Value>) -> Result<String, Error> {
    let text = text_of(&value)?;
    Ok(match characters.as_ref().and_then(Value::as_str) {
        Some(characters) => text.trim_matches(|c| characters.contains(c)).to_owned(),
        None => strip(&text).to_owned(),
    })
}

/// Python's blanks: Rust's, and the separators U+001C to U+001F.
fn is_blank(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn strip(text: &str) -> &str {
    text.trim_matches(is_blank)
}

/// Jinja2's `truncate(s, length=255, killwords=False, end='...', leeway=5)`.
fn truncate(value: Value, positional: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let option = |n: usize, name: &str| -> Result<Option<Value>, Error> {
        Ok(positional.get(n).cloned().or(options.get::<Option<Value>>(name)?).filter(|v| !v.is_none()))
    };
    let number = |v: Option<Value>, default: usize| v.map_or(Some(default), |v| v.as_usize());
    let wrong = || refused("truncate: expected a length and a leeway of 0 or more, and a text for the end");
    let length = number(option(0, "length")?, 255).ok_or_else(wrong)?;
    let kill_words = option(1, "killwords")?.is_some_and(|v| v.is_true());
    let end = option(2, "end")?.map_or_else(|| Ok("...".to_owned()), |v| python::str(&v))?;
    let leeway = number(option(3, "leeway")?, 5).ok_or_else(wrong)?;
    options.assert_all_used()?;
    let Some(text) = value.as_str() else {
        return Err(refused(format!("truncate: expected a text, got {}", value.kind())));
    };
    let room = length.checked_sub(end.chars().count()).ok_or_else(wrong)?;
    if text.chars().count() <= length + leeway {
        return Ok(text.to_owned());
    }
    let kept: String = text.chars().take(room).collect();
    let kept =
        if kill_words { kept.as_str() } else { kept.rsplit_once(' ').map_or(kept.as_str(), |(before, _)| before) };
    Ok(kept.to_owned() + &end)
}

/// Methods of texts, lists and dicts; those that Python's sandbox refuses because they change the object are refused too.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), "format") = (value.as_str(), name) {
        filters::fits_formatted(text, args)?;
    }
    let own = match value.kind() {
        ValueKind::String => text_method(value.as_str().unwrap_or_default(), name, args),
        ValueKind::Seq => list_method(value, name, args),
        ValueKind::Map => map_method(value, name, args),
        _ => None,
    };
    let result = match own {
        Some(result) => result?,
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)?,
    };
    keep(state, result)
}

const CHANGING: [&str; 12] = [
    "append",
    "extend",
    "insert",
    "remove",
    "sort",
    "reverse",
    "clear",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "__setitem__",
];

fn list_method(value: &Value, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let items = || value.try_iter().into_iter().flatten();
    Some(match name {
        "copy" => Ok(items().collect::<Vec<_>>().into()),
        "index" => from_args::<(Value,)>(args).and_then(|(what,)| {
            let found = items().position(|item| item == what);
            found.map(Value::from).ok_or_else(|| refused("the value is not in the list"))
        }),
        _ if CHANGING.contains(&name) => Err(refused(format!("access to attribute {name} of a list is unsafe"))),
        _ => return None,
    })
}

fn map_method(value: &Value, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match name {
        "copy" => Ok(value.clone()),
        "get" => from_args::<(Value, Option<Value>)>(args).and_then(|(key, default)| {
            let found = value.get_item(&key)?;
            Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
        }),
        _ if CHANGING.contains(&name) => Err(refused(format!("access to attribute {name} of a dict is unsafe"))),
        _ => return View::of(value, name),
    })
}

fn text_method(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match name {
        "strip" | "lstrip" | "rstrip" => stripped(text, name, args),
        "split" | "rsplit" => split(text, name == "rsplit", args),
        "splitlines" => {
            from_args::<(Option<bool>, Kwargs)>(args).and_then(|(keep, _)| splitlines(text, keep.unwrap_or(false)))
        }
        "removeprefix" => from_args::<(&str,)>(args).map(|(p,)| text.strip_prefix(p).unwrap_or(text).into()),
        "removesuffix" => from_args::<(&str,)>(args).map(|(p,)| text.strip_suffix(p).unwrap_or(text).into()),
        "partition" => from_args::<(&str,)>(args)
            .map(|(by,)| triple(text.split_once(by).map_or((text, "", ""), |(a, b)| (a, by, b)))),
        "rpartition" => from_args::<(&str,)>(args)
            .map(|(by,)| triple(text.rsplit_once(by).map_or(("", "", text), |(a, b)| (a, by, b)))),
        "startswith" | "endswith" => affixed(text, name == "endswith", args),
        "find" | "rfind" | "index" | "rindex" => find(text, name, args),
        "replace" => from_args::<(&str, &str, Option<i64>)>(args)
            .and_then(|(old, new, count)| replaced(text, old, new, count).map(Value::from)),
        "join" => from_args::<(Value,)>(args).and_then(|(items,)| joined(text, &items)),
        "ljust" | "rjust" | "center" | "zfill" => padded(text, name, args),
        "title" => no_arguments(args).map(|()| title(text).into()),
        "capitalize" => no_arguments(args).map(|()| {
            let mut chars = text.chars();
            let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
            (first + &chars.as_str().to_lowercase()).into()
        }),
        "swapcase" => no_arguments(args).map(|()| {
            let swap =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            text.chars().map(swap).collect::<String>().into()
        }),
        "casefold" => no_arguments(args).map(|()| text.replace('ß', "ss").to_lowercase().into()),
        "isdigit" => no_arguments(args).map(|()| {
            let fraction = |c: char| matches!(c, '\u{bc}'..='\u{be}' | '\u{2150}'..='\u{218b}');
            (!text.is_empty() && text.chars().all(|c| c.is_numeric() && !fraction(c))).into()
        }),
        "isdecimal" => {
            no_arguments(args).map(|()| (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into())
        }
        _ => return None,
    })
}

fn no_arguments(args: &[Value]) -> Result<(), Error> {
    from_args(args)
}

fn triple(parts: (&str, &str, &str)) -> Value {
    Value::from(Tuple::from([parts.0, parts.1, parts.2].map(Value::from)))
}

fn stripped(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (characters,): (Option<Value>,) = from_args(args)?;
    let characters = match characters.filter(|v| !v.is_none()) {
        Some(v) => Some(v.as_str().ok_or_else(|| refused(format!("{name} arg must be None or str")))?.to_owned()),
        None => None,
    };
    let cut = |c: char| characters.as_ref().map_or_else(|| is_blank(c), |set| set.contains(c));
    Ok(Value::from(match name {
        "lstrip" => text.trim_start_matches(cut),
        "rstrip" => text.trim_end_matches(cut),
        _ => text.trim_matches(cut),
    }))
}

fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (by, most, options): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let by = by.or(options.get::<Option<Value>>("sep")?).filter(|v| !v.is_none());
    let most = most.or(options.get::<Option<i64>>("maxsplit")?).and_then(|n| usize::try_from(n).ok());
    options.assert_all_used()?;
    let parts: Vec<&str> =
        match by.as_ref().map(|v| v.as_str().ok_or_else(|| refused("split: the separator must be a text"))) {
            Some(by) => {
                let by = by?;
                if by.is_empty() {
                    return Err(refused("empty separator"));
                }
                fits_items(text.matches(by).count().min(most.unwrap_or(usize::MAX)))?;
                match (most, from_right) {
                    (None, _) => text.split(by).collect(),
                    (Some(n), false) => text.splitn(n.saturating_add(1), by).collect(),
                    (Some(n), true) => {
                        let mut parts: Vec<&str> = text.rsplitn(n.saturating_add(1), by).collect();
                        parts.reverse();
                        parts
                    }
                }
            }
            None => {
                fits_items(text.split(is_blank).count().min(most.unwrap_or(usize::MAX)))?;
                split_blanks(text, most.unwrap_or(usize::MAX), from_right)
            }
        };
    Ok(parts.into_iter().map(Value::from).collect::<Vec<_>>().into())
}

/// `split()` without a separator: runs of blanks part, and none stands at the ends, but at that of what is no more cut.
fn split_blanks(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let near = |text: &str| {
        if from_right { text.trim_end_matches(is_blank).len() } else { text.trim_start_matches(is_blank).len() }
    };
    let mut rest = text;
    loop {
        let kept = near(rest);
        rest = if from_right { &rest[..kept] } else { &rest[rest.len() - kept..] };
        if rest.is_empty() {
            break;
        }
        let found = if from_right {
            rest.char_indices().rfind(|(_, c)| is_blank(*c)).map(|(at, c)| (at, at + c.len_utf8()))
        } else {
            rest.char_indices().find(|(_, c)| is_blank(*c)).map(|(at, c)| (at, at + c.len_utf8()))
        };
        let Some((at, behind)) = found.filter(|_| parts.len() < most) else {
            parts.push(rest);
            break;
        };
        parts.push(if from_right { &rest[behind..] } else { &rest[..at] });
        rest = if from_right { &rest[..at] } else { &rest[behind..] };
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// Python's line ends: also `\v`, `\f`, U+001C to U+001E, U+0085, U+2028 and U+2029.
fn splitlines(text: &str, keep: bool) -> Result<Value, Error> {
    let ends = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    fits_items(text.matches(ends).count())?;
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(ends) {
        let length =
            if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        lines.push(Value::from(&rest[..if keep { at + length } else { at }]));
        rest = &rest[at + length..];
    }
    if !rest.is_empty() {
        lines.push(Value::from(rest));
    }
    Ok(lines.into())
}

/// `text[start:end]` by characters, as optional arguments give it.
fn part(text: &str, start: Option<i64>, end: Option<i64>) -> (usize, String) {
    let count = text.chars().count() as i64;
    let place = |n: i64| if n < 0 { (n + count).max(0) } else { n.min(count) };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(count)));
    (start as usize, text.chars().skip(start as usize).take((end - start).max(0) as usize).collect())
}

fn affixed(text: &str, at_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
    let (_, text) = part(text, start, end);
    let fits = |v: &Value| {
        let affix = v.as_str().ok_or_else(|| refused("startswith and endswith take a text or a tuple of texts"))?;
        Ok::<_, Error>(if at_end { text.ends_with(affix) } else { text.starts_with(affix) })
    };
    if !what.is_tuple() {
        return fits(&what).map(Value::from);
    }
    for affix in what.try_iter()? {
        if fits(&affix)? {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn find(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let (skipped, inside) = part(text, start, end);
    let at = if name.starts_with('r') { inside.rfind(what) } else { inside.find(what) };
    match at {
        Some(at) => Ok(Value::from(skipped + inside[..at].chars().count())),
        None if name.ends_with("index") => Err(refused("substring not found")),
        None => Ok(Value::from(-1)),
    }
}

fn joined(separator: &str, items: &Value) -> Result<Value, Error> {
    let mut out = String::new();
    for (n, item) in items.try_iter()?.enumerate() {
        push(&mut out, if n > 0 { separator } else { "" })?;
        push(&mut out, item.as_str().ok_or_else(|| refused("join: expected texts"))?)?;
    }
    Ok(Value::from(out))
}

fn padded(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let width = usize::try_from(width).unwrap_or(0);
    if width > 10_000 {
        return Err(refused(format!("{name}: the width is too large")));
    }
    let room = width.saturating_sub(text.chars().count());
    let fill = |n: usize| fill.unwrap_or(" ").repeat(n);
    Ok(Value::from(match name {
        "ljust" => text.to_owned() + &fill(room),
        "rjust" => fill(room) + text,
        "zfill" => match text.strip_prefix(['-', '+']) {
            Some(digits) => text[..1].to_owned() + &"0".repeat(room) + digits,
            None => "0".repeat(room) + text,
        },
        // Python puts the odd blank at the left where the width is odd.
        _ => {
            let left = room / 2 + (room & width & 1);
            fill(left) + text + &fill(room - left)
        }
    }))
}

/// `str.title`: a capital after every character that is no letter.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}
