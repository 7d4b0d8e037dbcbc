//! What a template may hold in memory: templates come from strangers, and fuel counts instructions, not bytes.
//!
//! * A value has [`VALUE`] bytes at most. Whatever may make more of what it is given asks [`fits`] before it makes it.
//! * All values that are alive have [`HELD`] bytes at most. The VM has no hook where a value is dropped, so texts and lists are known
//!   by weak references, which are counted anew when twice as much has been made.
//! * What is written, into captures and macros too, has [`WRITTEN`] bytes at most. The VM keeps captures and the texts between tags
//!   to itself: the bodies of loops, macros and blocks say what they are about to write (`__spend`, see `jinja`).
//!
//! The longest conversations, of a million tokens, are about 4 MB of text; a template that builds one in one value passes.

use std::sync::{Arc, Weak};

use minijinja::value::{Rest, Tuple, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, functions};

use super::nesting::shallow;
use super::python::refused;
use super::views::View;

/// Bytes that a text or a list may have.
pub(super) const VALUE: usize = 8 << 20;
/// Bytes of all values that are alive.
const HELD: usize = 32 << 20;
/// Bytes that are written.
const WRITTEN: usize = 32 << 20;
/// Values that are looked at to see how deep lists and dicts are nested; what they share is looked at each time.
const LOOKED_AT: usize = 10_000_000;
/// What an item of a list takes, with what is around a value.
pub(super) const ITEM: usize = 32;
/// Texts up to this length lie in the value itself.
const SMALL: usize = 22;

/// Errors: a value that would have so many bytes is too large.
pub(super) fn fits(bytes: usize) -> Result<(), Error> {
    let message = || format!("a value would have more than {VALUE} bytes, the most that a chat template may build");
    if bytes > VALUE { Err(refused(message())) } else { Ok(()) }
}

/// [`fits`] for a list of so many items.
pub(super) fn fits_items(count: usize) -> Result<(), Error> {
    fits(count.saturating_mul(ITEM))
}

/// A text that is `count` times as long. Errors: it does not fit.
pub(super) fn repeated(text: &str, count: usize) -> Result<String, Error> {
    fits(text.len().saturating_mul(count))?;
    Ok(text.repeat(count))
}

/// A value that may have been dropped since.
enum Made {
    Text(Weak<str>),
    List(Weak<Vec<Value>>),
    Tuple(Weak<Tuple>),
    View(Weak<View>),
}

impl Made {
    /// What grows with use; `None` for other values.
    fn of(value: &Value) -> Option<Made> {
        if value.kind() == ValueKind::String {
            return value.to_str().map(|text| Made::Text(Arc::downgrade(&text)));
        }
        let list = || value.downcast_object().map(|list| Made::List(Arc::downgrade(&list)));
        let tuple = || value.downcast_object().map(|tuple| Made::Tuple(Arc::downgrade(&tuple)));
        list().or_else(tuple).or_else(|| value.downcast_object().map(|view| Made::View(Arc::downgrade(&view))))
    }

    fn is_alive(&self) -> bool {
        0 < match self {
            Made::Text(text) => text.strong_count(),
            Made::List(list) => list.strong_count(),
            Made::Tuple(tuple) => tuple.strong_count(),
            Made::View(view) => view.strong_count(),
        }
    }

    /// Where it lies: a filter may return what there was before.
    fn place(&self) -> *const u8 {
        match self {
            Made::Text(text) => text.as_ptr().cast(),
            Made::List(list) => list.as_ptr().cast(),
            Made::Tuple(tuple) => tuple.as_ptr().cast(),
            Made::View(view) => view.as_ptr().cast(),
        }
    }
}

/// What a rendering has made and written so far.
#[derive(Default)]
struct Budget {
    made: Vec<(Made, usize)>,
    /// Bytes of those, dropped ones included until they are counted anew.
    bytes: usize,
    /// Bytes of values of other kinds, which count to the end.
    other: usize,
    written: usize,
    looked_at: usize,
}

impl Budget {
    fn of<'a>(state: &'a mut State<'_, '_>) -> &'a mut Budget {
        state.get_or_insert_extension_with(Budget::default)
    }

    fn write(&mut self, bytes: usize) -> Result<(), Error> {
        self.written = self.written.saturating_add(bytes);
        let message = || format!("it writes more than {WRITTEN} bytes, what it captures included");
        if self.written > WRITTEN { Err(refused(message())) } else { Ok(()) }
    }

    /// Counts a value; of a list also what so many levels of its items hold.
    fn keep(&mut self, value: &Value, levels: usize) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            fits(text.len())?;
        } else if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            fits_items(value.len().unwrap_or_default())?;
        }
        if value.as_str().is_none_or(|text| text.len() > SMALL)
            && let Some(made) = Made::of(value)
        {
            let bytes = ITEM + weight(value, levels);
            self.made.push((made, bytes));
            self.bytes = self.bytes.saturating_add(bytes);
        }
        self.check()
    }

    fn check(&mut self) -> Result<(), Error> {
        if self.bytes + self.other > 2 * HELD {
            self.made.retain(|(made, _)| made.is_alive());
            self.made.sort_by_key(|(made, _)| made.place());
            self.made.dedup_by_key(|(made, _)| made.place());
            self.bytes = self.made.iter().map(|(_, bytes)| bytes).sum();
            if self.bytes + self.other > HELD {
                return Err(refused(format!("all values together have more than {HELD} bytes")));
            }
        }
        Ok(())
    }
}

/// Bytes of a list's items, of so many levels, texts included: a filter that makes a list makes the texts in it too.
fn weight(value: &Value, levels: usize) -> usize {
    if let Some(text) = value.as_str() {
        return if text.len() > SMALL { text.len() + ITEM } else { 0 };
    }
    let count = value.len().unwrap_or_default();
    let own = count.saturating_mul(if value.kind() == ValueKind::Map { 3 * ITEM } else { ITEM });
    if levels == 0 || !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return own;
    }
    let items = value.try_iter().into_iter().flatten();
    items.fold(own, |sum, item| sum.saturating_add(weight(&item, levels - 1)))
}

/// The value, counted. Errors: it is too large, or all values are.
pub(super) fn keep(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    Budget::of(state).keep(&value, 2)?;
    Ok(value)
}

/// The same for a list of items that were there before.
pub(super) fn keep_list(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    Budget::of(state).keep(&value, 0)?;
    Ok(value)
}

/// Counts what is written. Errors: it is too much.
pub(super) fn write(state: &mut State<'_, '_>, bytes: usize) -> Result<(), Error> {
    Budget::of(state).write(bytes)
}

/// Counts a value that is looked at. Errors: there were too many.
pub(super) fn look(state: &mut State<'_, '_>) -> Result<(), Error> {
    let budget = Budget::of(state);
    budget.looked_at += 1;
    match budget.looked_at > LOOKED_AT {
        true => Err(refused(format!("lists and dicts with more than {LOOKED_AT} values in them are too large"))),
        false => Ok(()),
    }
}

/// All arguments, those by name too.
pub(super) fn values(args: Rest<ValueOrKwargs>) -> Vec<Value> {
    args.0.into_iter().map(Value::from).collect()
}

/// How what a function takes and makes is counted.
#[derive(Clone, Copy)]
pub(super) enum Counted {
    /// A filter.
    Filter,
    /// A filter that goes over the items of what it is given, and holds them: they must fit, as a text's characters must.
    ListFilter,
    /// A function.
    Function,
    /// A function whose values are counted to the end: dicts and their like, which templates make few of.
    Maker,
}

/// Registers a filter or function whose values are counted.
pub(super) fn provide<F, Rv, Args>(env: &mut Environment<'static>, counted: Counted, name: &'static str, f: F)
where
    F: functions::Function<Rv, Args>,
    Rv: minijinja::value::FunctionResult,
    Args: for<'a> minijinja::value::FunctionArgs<'a>,
{
    let inner = Value::from_function(f);
    let call = move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
        let args = values(args);
        match counted {
            Counted::ListFilter => fits_items(args.first().and_then(Value::len).unwrap_or_default())?,
            Counted::Maker => args.iter().cloned().try_for_each(|arg| shallow(state, arg).map(drop))?,
            Counted::Filter | Counted::Function => {}
        }
        let value = inner.call(state, &args)?;
        let Counted::Maker = counted else { return keep(state, value) };
        let budget = Budget::of(state);
        budget.other += 8 * ITEM + weight(&value, 0);
        budget.check()?;
        Ok::<_, Error>(value)
    };
    match counted {
        Counted::Filter | Counted::ListFilter => env.add_filter(name, call),
        Counted::Function | Counted::Maker => env.add_function(name, call),
    }
}
