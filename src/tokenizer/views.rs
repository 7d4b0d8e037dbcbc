//! What Python's `range` and the views of a dict are: they print under their own names, and no JSON can be made of them.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, Tuple, Value};
use minijinja::{Environment, Error};

use super::budget::{Counted, provide};
use super::python::{self, refused};

/// The longest range that Jinja2's sandbox makes.
const MOST: i64 = 100_000;

/// Registers `range`.
pub(super) fn register(env: &mut Environment<'static>) {
    provide(env, Counted::Function, "range", Range::value);
}

/// `keys()`, `values()` or `items()` of a dict.
#[derive(Debug)]
pub(super) struct View {
    name: &'static str,
    items: Vec<Value>,
}

impl View {
    /// Of a dict; `None` for another method.
    pub(super) fn of(map: &Value, method: &str) -> Option<Result<Value, Error>> {
        let name = match method {
            "keys" => "dict_keys",
            "values" => "dict_values",
            "items" => "dict_items",
            _ => return None,
        };
        let item = |key: Value| {
            let value = || map.get_item(&key);
            Ok(match name {
                "dict_keys" => key,
                "dict_values" => value()?,
                _ => Value::from(Tuple::from([key.clone(), value()?])),
            })
        };
        let items = map.try_iter().and_then(|keys| keys.map(item).collect::<Result<Vec<_>, Error>>());
        Some(items.map(|items| Value::from_object(View { name, items })))
    }

    /// `name([...])`. Errors: `out` takes no more, or it is nested too deep.
    pub(super) fn write(&self, depth: usize, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "{}(", self.name)?;
        python::write_repr(&Value::from(self.items.clone()), depth + 1, out)?;
        out.write_str(")")
    }

    /// Python's name of the type.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    // Views have no index: items[0] is undefined, where minijinja would count along.
    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::UNDEFINED)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(0, f)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }
}

/// Python's `range`.
#[derive(Debug)]
pub(super) struct Range {
    start: i64,
    stop: i64,
    step: i64,
}

impl Range {
    fn value(first: i64, stop: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
        let (start, stop) = stop.map_or((0, first), |stop| (first, stop));
        let range = Range { start, stop, step: step.unwrap_or(1) };
        if range.step == 0 {
            return Err(refused("range() arg 3 must not be zero"));
        }
        if range.len() > i128::from(MOST) {
            return Err(refused(format!("range too big: the sandbox blocks ranges larger than {MOST}")));
        }
        Ok(Value::from_object(range))
    }

    fn len(&self) -> i128 {
        let [start, stop, step] = [self.start, self.stop, self.step].map(i128::from);
        let (span, step) = if step > 0 { (stop - start, step) } else { (start - stop, -step) };
        if span > 0 { (span + step - 1) / step } else { 0 }
    }

    fn at(&self, index: i128) -> i64 {
        (i128::from(self.start) + index * i128::from(self.step)) as i64
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let index = i128::from(key.as_i64()?);
        let index = if index < 0 { index + self.len() } else { index };
        (0..self.len()).contains(&index).then(|| Value::from(self.at(index)))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values((0..self.len()).map(|index| Value::from(self.at(index))).collect())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            1 => write!(f, "range({}, {})", self.start, self.stop),
            step => write!(f, "range({}, {}, {step})", self.start, self.stop),
        }
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        let other = other.downcast_ref::<Range>()?;
        let all = |range: &Range| (0..range.len()).map(|index| range.at(index)).collect::<Vec<_>>();
        Some(all(self).cmp(&all(other)))
    }
}
