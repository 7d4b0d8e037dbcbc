//! How deep a template may nest what it makes: comparing, sorting and dropping a value goes down its levels one by one, and takes
//! stack for each.

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, State};

use super::budget;
use super::jinja::{ATTRIBUTE, NESTED};
use super::python::refused;

/// Levels of lists and dicts in one another.
const DEPTH: usize = 200;

/// Registers the functions that templates are rewritten with.
pub(super) fn register(env: &mut Environment<'static>) {
    env.add_function(NESTED, shallow);
    env.add_function(ATTRIBUTE, |value: Value| match is_namespace(&value) {
        true => Err(refused("a namespace cannot be in another")),
        false => Ok(value),
    });
}

fn is_macro(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Macro"))
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("Namespace"))
}

/// The value. Errors: it is nested too deep; it holds what says nothing about its own depth, such as a namespace; so many values have
/// been looked at.
pub(super) fn shallow(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    // Levels that are open, with what is left of each.
    let mut open: Vec<Box<dyn Iterator<Item = Value>>> = vec![children(&value)];
    while let Some(level) = open.last_mut() {
        let Some(child) = level.next() else {
            open.pop();
            continue;
        };
        budget::look(state)?;
        if is_namespace(&child) || (child.kind() == ValueKind::Plain && !is_macro(&child)) {
            return Err(refused("a list or dict cannot hold a namespace, a cycler or their like"));
        }
        if matches!(child.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
            if open.len() >= DEPTH {
                return Err(refused(format!("lists and dicts nested deeper than {DEPTH} levels are too large")));
            }
            open.push(children(&child));
        }
    }
    Ok(value)
}

fn children(value: &Value) -> Box<dyn Iterator<Item = Value>> {
    let items = value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::Map => {
            let map = value.clone();
            Box::new(items.flat_map(move |key| {
                let value = map.get_item(&key).unwrap_or_default();
                [key, value]
            }))
        }
        _ => Box::new(items),
    }
}
