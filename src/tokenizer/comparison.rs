//! Comparisons as Python makes them: what has no order is an error, where minijinja orders everything.

use std::cmp::Ordering;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, State, filters};

use super::budget::{Counted, provide};
use super::jinja::{COMPARE, CONTAINS};
use super::python::refused;
use super::views::{Range, View};

/// Registers the functions that templates are rewritten with, and tests and filters that order values.
pub(super) fn register(env: &mut Environment<'static>) {
    env.add_function(COMPARE, |op: &str, left: Value, right: Value| compare(op, &left, &right));
    env.add_function(CONTAINS, |item: Value, container: Value| contains(&container, &item));
    env.add_test("in", |item: Value, container: Value| contains(&container, &item));
    for (op, names) in [
        ("<", &["lt", "lessthan", "<"][..]),
        (">", &["gt", "greaterthan", ">"]),
        ("<=", &["le", "<="]),
        (">=", &["ge", ">="]),
    ] {
        for name in names {
            env.add_test(*name, move |left: Value, right: Value| compare(op, &left, &right));
        }
    }
    provide(env, Counted::ListFilter, "sort", |state: &State<'_, '_>, value: Value, options: Kwargs| {
        expect_order(&value, options.peek::<Option<&str>>("attribute")?)?;
        filters::sort(state, value, options)
    });
    provide(env, Counted::ListFilter, "min", |state: &State<'_, '_>, value: Value, options: Kwargs| {
        expect_order(&value, options.peek::<Option<&str>>("attribute")?)?;
        filters::min(state, value, options)
    });
    provide(env, Counted::ListFilter, "max", |state: &State<'_, '_>, value: Value, options: Kwargs| {
        expect_order(&value, options.peek::<Option<&str>>("attribute")?)?;
        filters::max(state, value, options)
    });
    provide(env, Counted::ListFilter, "dictsort", |value: Value, options: Kwargs| {
        if value.kind() == ValueKind::Map {
            let by_value = options.peek::<Option<&str>>("by")? == Some("value");
            let keys: Vec<Value> = value.try_iter()?.collect();
            let of = |key: Value| if by_value { value.get_item(&key) } else { Ok(key) };
            in_order(&keys.into_iter().map(of).collect::<Result<Vec<_>, _>>()?)?;
        }
        filters::dictsort(&value, options)
    });
}

/// The name of a value's type in Python.
fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Map => "dict",
        _ if value.is_tuple() => "tuple",
        _ => match (value.downcast_object_ref::<View>(), value.downcast_object_ref::<Range>()) {
            (Some(view), _) => view.name(),
            (_, Some(_)) => "range",
            _ if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) => "list",
            _ => "object",
        },
    }
}

/// `left op right`, one of `<`, `>`, `<=`, `>=`.
fn compare(op: &str, left: &Value, right: &Value) -> Result<bool, Error> {
    let Some(order) = order(op, left, right)? else { return Ok(false) };
    Ok(match op {
        "<" => order.is_lt(),
        ">" => order.is_gt(),
        "<=" => order.is_le(),
        _ => order.is_ge(),
    })
}

/// The order of two values; `None` beside a NaN. Errors: what Python does not order.
fn order(op: &str, left: &Value, right: &Value) -> Result<Option<Ordering>, Error> {
    if left.is_undefined() || right.is_undefined() {
        return Err(refused(format!("{op}: a value is undefined")));
    }
    let is_number = |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool);
    let (a, b) = (type_name(left), type_name(right));
    if is_number(left) && is_number(right) {
        let whole = |v: &Value| match v.kind() {
            ValueKind::Bool => Some(i128::from(v.is_true())),
            _ if v.is_integer() => i128::try_from(v.clone()).ok(),
            _ => None,
        };
        let real = |v: &Value| match whole(v) {
            Some(n) => n as f64,
            None => f64::try_from(v.clone()).unwrap_or(f64::NAN),
        };
        return Ok(match (whole(left), whole(right)) {
            (Some(x), Some(y)) => Some(x.cmp(&y)),
            _ => real(left).partial_cmp(&real(right)),
        });
    }
    if let (Some(x), Some(y)) = (left.as_str(), right.as_str()) {
        return Ok(Some(x.cmp(y)));
    }
    if a == b && ["list", "tuple"].contains(&a) {
        let (x, y): (Vec<Value>, Vec<Value>) = (left.try_iter()?.collect(), right.try_iter()?.collect());
        return match x.iter().zip(&y).find(|(x, y)| x != y) {
            Some((x, y)) => order(op, x, y),
            None => Ok(Some(x.len().cmp(&y.len()))),
        };
    }
    Err(refused(format!("'{op}' not supported between instances of '{a}' and '{b}'")))
}

/// `item in container`.
fn contains(container: &Value, item: &Value) -> Result<bool, Error> {
    match container.kind() {
        ValueKind::Undefined => Ok(false),
        ValueKind::String => match item.as_str() {
            Some(item) => Ok(container.as_str().is_some_and(|text| text.contains(item))),
            None => {
                let message = format!("'in <string>' requires string as left operand, not {}", type_name(item));
                Err(refused(message))
            }
        },
        ValueKind::Map => match item.kind() {
            ValueKind::Map | ValueKind::Seq | ValueKind::Iterable if !item.is_tuple() => {
                Err(refused(format!("unhashable type: '{}'", type_name(item))))
            }
            _ => Ok(container.try_iter()?.any(|key| key == *item)),
        },
        ValueKind::Seq | ValueKind::Iterable => Ok(container.try_iter()?.any(|other| other == *item)),
        _ => Err(refused(format!("argument of type '{}' is not iterable", type_name(container)))),
    }
}

/// Errors: what a filter sorts by has no order. `attribute`: what of each item, or several with commas between.
fn expect_order(value: &Value, attribute: Option<&str>) -> Result<(), Error> {
    let Ok(items) = value.try_iter() else { return Ok(()) };
    let items: Vec<Value> = items.collect();
    let Some(attribute) = attribute else { return in_order(&items) };
    for path in attribute.split(',') {
        in_order(&items.iter().map(|item| attribute_of(item, path)).collect::<Result<Vec<_>, _>>()?)?;
    }
    Ok(())
}

/// What `a.b.0` is of a value.
pub(super) fn attribute_of(item: &Value, path: &str) -> Result<Value, Error> {
    path.trim().split('.').try_fold(item.clone(), |value, name| match name.parse::<usize>() {
        Ok(at) => value.get_item_by_index(at),
        Err(_) => value.get_attr(name),
    })
}

/// Each value against the first of its like, and lists against each other.
fn in_order(values: &[Value]) -> Result<(), Error> {
    const MOST: usize = 256;
    let nested = values.iter().any(|v| matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable));
    if nested && values.len() > MOST {
        return Err(refused(format!("more than {MOST} lists are sorted")));
    }
    let firsts = if nested { values.len() } else { values.len().min(1) };
    for (at, first) in values.iter().enumerate().take(firsts) {
        for other in &values[at + 1..] {
            order("<", other, first)?;
        }
    }
    Ok(())
}
