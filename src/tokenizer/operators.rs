//! The operators that make a value longer, `+`, `~`, `*` and slices, as functions: minijinja's own have no bound that a template from a
//! stranger may have, and no hook. Numbers are added and multiplied as minijinja does.

use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind};
use minijinja::{Environment, Error, State};

use super::budget::{self, Counted, fits, fits_items, keep, keep_list, provide, repeated};
use super::comparison::attribute_of;
use super::jinja::{ADD, CONCAT, MULTIPLY, SLICED, SPEND};
use super::python::{self, refused};

/// Registers the functions that templates are rewritten with, and `sum`.
pub(super) fn register(env: &mut Environment<'static>) {
    env.add_function(ADD, |state: &mut State<'_, '_>, values: Rest<Value>| {
        // A chain of texts is one text, and its beginnings are not made.
        if let Some(texts) = values.iter().map(Value::as_str).collect::<Option<Vec<&str>>>() {
            fits(texts.iter().map(|text| text.len()).sum())?;
            return keep(state, Value::from(texts.concat()));
        }
        let mut values = values.0.into_iter();
        let first = values.next().unwrap_or_default();
        values.try_fold(first, |sum, value| {
            let sum = add(&sum, &value)?;
            keep_list(state, sum)
        })
    });
    env.add_function(CONCAT, |state: &mut State<'_, '_>, values: Rest<Value>| {
        let mut out = String::new();
        for value in values.iter() {
            match value.as_str() {
                Some(text) => push(&mut out, text)?,
                None => push(&mut out, &python::str(value)?)?,
            }
        }
        keep(state, Value::from(out))
    });
    env.add_function(MULTIPLY, |state: &mut State<'_, '_>, left: Value, right: Value| {
        let product = multiply(&left, &right)?;
        keep_list(state, product)
    });
    env.add_function(SLICED, |state: &mut State<'_, '_>, value: Value| {
        let value = listed(value)?;
        keep_list(state, value)
    });
    env.add_function(SPEND, |state: &mut State<'_, '_>, bytes: usize| budget::write(state, bytes));
    provide(env, Counted::ListFilter, "sum", sum);
}

/// Adds to a text. Errors: it grows too long.
pub(super) fn push(out: &mut String, text: &str) -> Result<(), Error> {
    fits(out.len().saturating_add(text.len()))?;
    out.push_str(text);
    Ok(())
}

/// What `+`, slices and generators make of lists, as the list itself: one that only says how it is made may stand on another such,
/// and so on.
pub(super) fn listed(value: Value) -> Result<Value, Error> {
    let lazy = value.kind() == ValueKind::Iterable && !value.is_tuple();
    if lazy { items([&value]).map(Value::from) } else { Ok(value) }
}

/// The items of lists, one after the other. Errors: they are too many.
fn items<const N: usize>(lists: [&Value; N]) -> Result<Vec<Value>, Error> {
    let mut all = Vec::new();
    for list in lists {
        for item in list.try_iter()? {
            if all.len() % 1024 == 0 {
                fits_items(all.len())?;
            }
            all.push(item);
        }
    }
    fits_items(all.len()).map(|()| all)
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn unsupported(operator: &str, left: &Value, right: &Value) -> Error {
    let (left, right) = (left.kind(), right.kind());
    refused(format!("tried to use {operator} operator on unsupported types {left} and {right}"))
}

fn whole(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn real(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Number if !value.is_integer() => f64::try_from(value.clone()).ok(),
        _ => whole(value).map(|n| n as f64),
    }
}

/// The result of an operator on numbers; `None` where one is no number.
fn of_numbers(
    operator: char,
    (left, right): (&Value, &Value),
    of_whole: fn(i128, i128) -> Option<i128>,
    of_real: fn(f64, f64) -> f64,
) -> Option<Result<Value, Error>> {
    if let (Some(a), Some(b)) = (whole(left), whole(right)) {
        let result = of_whole(a, b).ok_or_else(|| refused(format!("unable to calculate {a} {operator} {b}")));
        return Some(result.map(|n| i64::try_from(n).map_or_else(|_| Value::from(n), Value::from)));
    }
    Some(Ok(Value::from(of_real(real(left)?, real(right)?))))
}

/// `left + right`.
fn add(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        fits(a.len().saturating_add(b.len()))?;
        return Ok(Value::from([a, b].concat()));
    }
    if left.is_tuple() && right.is_tuple() {
        return Ok(Value::from(Tuple::from(items([left, right])?)));
    }
    if is_list(left) && is_list(right) && !left.is_tuple() && !right.is_tuple() {
        return items([left, right]).map(Value::from);
    }
    of_numbers('+', (left, right), i128::checked_add, |a, b| a + b)
        .unwrap_or_else(|| Err(unsupported("+", left, right)))
}

/// `left * right`.
fn multiply(left: &Value, right: &Value) -> Result<Value, Error> {
    let is_many = |value: &Value| value.as_str().is_some() || is_list(value);
    let (many, count) = if is_many(left) { (left, right) } else { (right, left) };
    if !is_many(many) {
        return of_numbers('*', (left, right), i128::checked_mul, |a, b| a * b)
            .unwrap_or_else(|| Err(unsupported("*", left, right)));
    }
    let wrong = || refused("texts and lists can only be multiplied with integers");
    let count = usize::try_from(whole(count).ok_or_else(wrong)?.max(0)).unwrap_or(usize::MAX);
    if let Some(text) = many.as_str() {
        return repeated(text, count).map(Value::from);
    }
    let once = items([many])?;
    fits_items(once.len().saturating_mul(count))?;
    let length = once.len() * if once.is_empty() { 0 } else { count };
    let all: Vec<Value> = once.into_iter().cycle().take(length).collect();
    Ok(if many.is_tuple() { Value::from(Tuple::from(all)) } else { Value::from(all) })
}

/// Jinja2's `sum(values, attribute=None, start=0)`.
fn sum(
    state: &mut State<'_, '_>,
    values: Value,
    attribute: Option<Value>,
    start: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let attribute = attribute.or(options.get::<Option<Value>>("attribute")?).filter(|name| !name.is_none());
    let start = start.or(options.get::<Option<Value>>("start")?).unwrap_or_else(|| Value::from(0));
    options.assert_all_used()?;
    let mut sum = start;
    for item in values.try_iter()? {
        let item = match &attribute {
            Some(name) => attribute_of(&item, &python::str(name)?).unwrap_or_default(),
            None => item,
        };
        if item.is_undefined() {
            continue;
        }
        let more = add(&sum, &item)?;
        sum = keep_list(state, more)?;
    }
    Ok(sum)
}
