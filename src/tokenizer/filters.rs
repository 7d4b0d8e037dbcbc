//! minijinja's own filters, within the bounds of `budget`: where one may make more of what it is given, that is asked first.

use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, filters};

use super::budget::{Counted, fits, fits_items, keep, provide, values};
use super::nesting::shallow;
use super::operators::listed;
use super::python::{self, refused};

/// Registers them.
pub(super) fn register(env: &mut Environment<'static>) {
    text_filter(env, "upper", Value::from_function(filters::upper));
    text_filter(env, "lower", Value::from_function(filters::lower));
    text_filter(env, "title", Value::from_function(filters::title));
    text_filter(env, "capitalize", Value::from_function(filters::capitalize));
    text_filter(env, "safe", Value::from_function(filters::safe));
    for name in ["escape", "e"] {
        text_filter(env, name, Value::from_function(filters::escape));
    }
    provide(env, Counted::Filter, "indent", indent);
    provide(env, Counted::Filter, "format", format);
    provide(env, Counted::ListFilter, "list", filters::list);
    provide(env, Counted::ListFilter, "first", filters::first);
    provide(env, Counted::ListFilter, "last", filters::last);
    provide(env, Counted::ListFilter, "items", filters::items);
    provide(env, Counted::ListFilter, "unique", filters::unique);
    provide(
        env,
        Counted::ListFilter,
        "groupby",
        |state: &mut State<'_, '_>, value: Value, attribute: Option<&str>, options: Kwargs| {
            let groups = filters::groupby(value, attribute, options)?;
            shallow(state, groups)
        },
    );
    provide(env, Counted::ListFilter, "map", filters::map);
    provide(env, Counted::ListFilter, "select", filters::select);
    provide(env, Counted::ListFilter, "reject", filters::reject);
    provide(env, Counted::ListFilter, "selectattr", filters::selectattr);
    provide(env, Counted::ListFilter, "rejectattr", filters::rejectattr);
    provide(env, Counted::ListFilter, "reverse", |value: Value| listed(filters::reverse(&value)?));
    provide(
        env,
        Counted::ListFilter,
        "batch",
        |state: &mut State<'_, '_>, value: Value, count: usize, fill: Option<Value>| {
            fits_items(count)?;
            let batches = filters::batch(state, value, count, fill)?;
            shallow(state, batches)
        },
    );
    provide(
        env,
        Counted::ListFilter,
        "slice",
        |state: &mut State<'_, '_>, value: Value, count: usize, fill: Option<Value>| {
            fits_items(count)?;
            let slices = filters::slice(state, value, count, fill)?;
            shallow(state, slices)
        },
    );
}

/// A filter of texts, at most a few times as long: what is none is printed as Python prints it, which has a bound.
fn text_filter(env: &mut Environment<'static>, name: &'static str, inner: Value) {
    env.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
        let mut args = values(args);
        if let Some(value) = args.first_mut() {
            *value = as_text(value)?;
        }
        let value = inner.call(state, &args)?;
        keep(state, value)
    });
}

/// A list or dict as a text, other values as they are.
fn as_text(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => python::str(value).map(Value::from),
        _ => Ok(value.clone()),
    }
}

fn indent(state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut args = values(args);
    let Some(value) = args.first_mut() else { return Err(refused("indent: expected a text")) };
    *value = as_text(value)?;
    let lines = value.as_str().map_or(1, |text| text.matches('\n').count() + 1);
    let length = value.as_str().map_or(0, str::len);
    let named = args.last().and_then(|last| Kwargs::try_from(last.clone()).ok());
    let named = named.and_then(|options| options.peek::<Option<Value>>("width").ok().flatten());
    let width = args.get(1).and_then(Value::as_usize).or(named.as_ref().and_then(Value::as_usize)).unwrap_or(4);
    fits(length.saturating_add(lines.saturating_mul(width)))?;
    Value::from_function(filters::indent).call(state, &args)
}

/// Jinja2's `format(value, *args, **kwargs)`, which is `%`.
fn format(value: Value, args: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let named: Vec<(Value, Value)> =
        options.args().map(|name| Ok((Value::from(name), options.get(name)?))).collect::<Result<_, Error>>()?;
    let arguments = match (args.is_empty(), named.is_empty()) {
        (false, false) => return Err(refused("can't handle positional and keyword arguments at the same time")),
        (_, true) => Value::from(Tuple::from(args.0)),
        (_, false) => Value::from_pairs(named),
    };
    python::modulo(&Value::from(python::str(&value)?), &arguments)
}

/// Errors: `text.format(args)` may grow too long. Each field may be as long as the longest argument and as wide as the largest
/// number in the text, or, where a field stands in another, among the arguments.
pub(super) fn fits_formatted(text: &str, args: &[Value]) -> Result<(), Error> {
    let (mut depth, mut nested, mut fields) = (0usize, false, 0usize);
    for c in text.replace("{{", "").chars() {
        match c {
            '{' => {
                depth += 1;
                nested |= depth > 1;
                fields += 1;
            }
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let mut widest = numbers.map(|digits| digits.parse().unwrap_or(usize::MAX)).max().unwrap_or_default();
    let mut longest = 0;
    for arg in args {
        longest = longest.max(python::str(arg)?.len());
        let values: Vec<Value> = match arg.kind() {
            ValueKind::Map => arg.try_iter()?.map(|key| arg.get_item(&key)).collect::<Result<_, _>>()?,
            _ => vec![arg.clone()],
        };
        widest = widest.max(values.iter().filter_map(Value::as_usize).filter(|_| nested).max().unwrap_or_default());
    }
    let escaped = if text.contains('!') { 6 } else { 1 };
    let field = longest.saturating_mul(escaped).saturating_add(widest);
    fits(text.len().saturating_add(fields.saturating_mul(field)))
}
