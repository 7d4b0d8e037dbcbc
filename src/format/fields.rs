//! The one reader of typed fields: of config.json, adapter_config.json, the configurations of quantized models,
//! generation_config.json and GGUF metadata.
//!
//! A field of another type than asked for is an error with the file's name, the field's, the value and what was expected: a
//! number given as text is not taken for a missing one. What is missing is the caller's default; an explicit null is no
//! missing field, and only what the `nullable_*` methods read may be one. Which fields were asked for is kept, so that
//! [`Fields::unknown`] lists those that nobody looked at. This reader knows no file's meaning.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::{borrow::Cow, cell::RefCell, collections::BTreeSet, ops::RangeInclusive, path::Path};

/// Larger extents are no model that exists; they are refused before anything is computed from them.
pub const MAX_EXTENT: i64 = 1 << 24;

/// The fields of one JSON object, or of an object inside it.
///
/// ```
/// use fourbit::format::fields::Fields;
/// let json = serde_json::json!({"hidden_size": 64, "tie_word_embeddings": "yes", "sliding_window": null});
/// let fields = Fields::new(&json, "config.json".as_ref())?;
/// assert_eq!(fields.extent("hidden_size")?, 64);
/// assert_eq!(fields.number_or("rms_norm_eps", 1e-6)?, 1e-6);
/// assert_eq!(fields.nullable_extent("sliding_window", Some(4096))?, None);
/// let error = fields.flag("tie_word_embeddings", false).unwrap_err();
/// assert_eq!(error.to_string(), "config.json: tie_word_embeddings: expected true or false, got \"yes\"");
/// assert!(fields.unknown().is_empty());
/// # Ok::<(), fourbit::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    path: &'a Path,
    /// The names of the objects around this one, each with a dot behind it.
    within: String,
    map: Cow<'a, Map<String, Value>>,
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Fields<'a> {
    /// The fields of a file's JSON. Errors: Format where it is no object.
    pub fn new(json: &'a Value, path: &'a Path) -> Result<Fields<'a>> {
        match json {
            Value::Object(map) => Ok(Fields::of(Cow::Borrowed(map), path)),
            other => Err(Error::format(path, format!("expected a JSON object, got {}", shown(other)))),
        }
    }

    /// The fields of a file that is no JSON.
    pub fn owned(map: Map<String, Value>, path: &'a Path) -> Fields<'a> {
        Fields::of(Cow::Owned(map), path)
    }

    fn of(map: Cow<'a, Map<String, Value>>, path: &'a Path) -> Fields<'a> {
        Fields { path, within: String::new(), map, asked: RefCell::default() }
    }

    /// The same with messages that name the object `name` around it: for one that was taken out of its file.
    pub fn within(mut self, name: &str) -> Fields<'a> {
        self.within = format!("{name}.");
        self
    }

    /// The file.
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// The names of all fields, sorted or as they stand.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// The value as it stands, null included; `None` where the field is missing.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.asked.borrow_mut().insert(name.to_owned());
        self.map.get(name)
    }

    /// Whether the field is there and no null.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !value.is_null())
    }

    /// Whether the field is there and null.
    pub fn is_null(&self, name: &str) -> bool {
        self.get(name).is_some_and(Value::is_null)
    }

    /// An error that names file, field, what was `expected` and the value that is there.
    pub fn fail(&self, name: &str, expected: impl std::fmt::Display) -> Error {
        let got = self.get(name).map_or("nothing".to_owned(), shown);
        Error::format(self.path, format!("{}{name}: expected {expected}, got {got}", self.within))
    }

    /// Errors: Format where the field is missing.
    fn required<T>(&self, name: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::format(self.path, format!("{}{name} is missing", self.within)))
    }

    /// The value as `read` takes it; `None` where the field is missing. Errors: Format where `read` does not take it.
    fn typed<'s, T>(&'s self, name: &str, expected: &str, read: impl Fn(&'s Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.fail(name, expected)),
        }
    }

    /// true or false. Errors: Format, also for null, 0, 1 and texts.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.typed(name, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A number that must be there. Errors: Format.
    pub fn number(&self, name: &str) -> Result<f64> {
        let value = self.typed(name, "a number", Value::as_f64)?;
        self.required(name, value)
    }

    /// A number. Errors: Format, also for null.
    pub fn number_or(&self, name: &str, default: f64) -> Result<f64> {
        Ok(self.typed(name, "a number", Value::as_f64)?.unwrap_or(default))
    }

    /// A number, or null for none. Errors: Format.
    pub fn nullable_number(&self, name: &str, default: Option<f64>) -> Result<Option<f64>> {
        if self.is_null(name) { Ok(None) } else { Ok(self.typed(name, "a number or null", Value::as_f64)?.or(default)) }
    }

    /// A whole number of this range, written as one: 4.0 is none. `None` where the field is missing.
    /// Errors: Format, also for null.
    pub fn integer(&self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.typed(name, &expected, |value| value.as_i64().filter(|n| range.contains(n)))
    }

    /// A whole number from 1 to [`MAX_EXTENT`] that must be there. Errors: Format.
    pub fn extent(&self, name: &str) -> Result<usize> {
        let value = self.integer(name, 1..=MAX_EXTENT)?;
        self.required(name, value).map(|n| n as usize)
    }

    /// A whole number from 1 to [`MAX_EXTENT`]. Errors: Format, also for null.
    pub fn extent_or(&self, name: &str, default: usize) -> Result<usize> {
        Ok(self.integer(name, 1..=MAX_EXTENT)?.map_or(default, |n| n as usize))
    }

    /// A whole number from 1 to [`MAX_EXTENT`], or null for none. Errors: Format.
    pub fn nullable_extent(&self, name: &str, default: Option<usize>) -> Result<Option<usize>> {
        if self.is_null(name) {
            return Ok(None);
        }
        Ok(self.integer(name, 1..=MAX_EXTENT)?.map(|n| n as usize).or(default))
    }

    /// A text; `None` where the field is missing. Errors: Format, also for null.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        self.typed(name, "a text", Value::as_str)
    }

    /// A text, or null for none. Errors: Format.
    pub fn nullable_text(&self, name: &str) -> Result<Option<&str>> {
        if self.is_null(name) { Ok(None) } else { self.typed(name, "a text or null", Value::as_str) }
    }

    /// A list; `None` where the field is missing. Errors: Format, also for null.
    pub fn list(&self, name: &str) -> Result<Option<&[Value]>> {
        self.typed(name, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    /// A list of texts, or null for none. Errors: Format.
    pub fn nullable_texts(&self, name: &str) -> Result<Option<Vec<&str>>> {
        if self.is_null(name) {
            return Ok(None);
        }
        let texts = |value| Value::as_array(value)?.iter().map(Value::as_str).collect();
        self.typed(name, "a list of texts or null", texts)
    }

    /// The token ids of a field such as `eos_token_id`: one, a list of them, or null or -1 for none. Errors: Format.
    pub fn token_ids(&self, name: &str) -> Result<Vec<u32>> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.typed(name, "a token id, a list of them, or null", |value| match value {
            Value::Null => Some(Vec::new()),
            Value::Array(list) => list.iter().map(id).collect(),
            one if one.as_i64() == Some(-1) => Some(Vec::new()),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// Which of these values the field has; `None` where it is missing. Errors: Format for any other, null too.
    pub fn one_of<'k>(&self, name: &str, known: &[&'k str]) -> Result<Option<&'k str>> {
        let expected = format!("one of {}", known.join(", "));
        self.typed(name, &expected, |value| known.iter().find(|&&k| value == k).copied())
    }

    /// The fields of the object that stands there; `None` where it is missing or null. Errors: Format.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'_>>> {
        match self.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Fields::of(Cow::Borrowed(map), self.path).within(&format!("{}{name}", self.within))))
            }
            Some(_) => Err(self.fail(name, "an object")),
        }
    }

    /// Counts these fields as asked for: they are known, and change no result.
    pub fn ignore(&self, names: &[&str]) {
        self.asked.borrow_mut().extend(names.iter().map(|&name| name.to_owned()));
    }

    /// The fields that nobody asked for, with the names of the objects around them.
    pub fn unknown(&self) -> Vec<String> {
        let asked = self.asked.borrow();
        self.map.keys().filter(|name| !asked.contains(*name)).map(|name| format!("{}{name}", self.within)).collect()
    }

    /// Errors: Format for the first field that nobody asked for, unless it is null: it may change the result, and what it
    /// means is not known.
    pub fn refuse_unknown(&self) -> Result<()> {
        let asked = self.asked.borrow();
        match self.map.iter().find(|(name, value)| !asked.contains(*name) && !value.is_null()) {
            None => Ok(()),
            Some((name, value)) => {
                let message = format!(
                    "{}{name} is {}: this field is not known, and may change the result; remove it if it does not",
                    self.within,
                    shown(value)
                );
                Err(Error::format(self.path, message))
            }
        }
    }
}

/// A value as JSON, cut where it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.expect_err("another type is refused").to_string()
    }

    #[test]
    fn another_type_is_an_error_and_not_the_default() {
        let json = json!({"flag": "false", "one": 1, "number": "1e-5", "extent": 64.0, "zero": 0, "null": null, "big": 1u64 << 40});
        let f = Fields::new(&json, Path::new("dir/config.json")).unwrap();
        assert_eq!(error(f.flag("flag", true)), "dir/config.json: flag: expected true or false, got \"false\"");
        assert!(error(f.flag("one", false)).ends_with("got 1"));
        assert!(error(f.flag("null", false)).ends_with("got null"));
        assert!(error(f.number("number")).contains("number: expected a number, got \"1e-5\""));
        assert!(error(f.number_or("null", 1.0)).ends_with("got null"));
        assert!(error(f.extent("extent")).contains("expected a whole number from 1 to 16777216, got 64.0"));
        for name in ["zero", "big", "flag", "null"] {
            assert!(error(f.extent_or(name, 1)).contains(name));
        }
        assert!(error(f.text("one")).contains("one: expected a text, got 1"));
        assert!(error(f.one_of("flag", &["silu", "gelu"])).contains("one of silu, gelu"));
        assert!(error(f.object("one")).contains("an object"));
        assert!(
            error(f.token_ids("flag")).contains("flag: expected a token id, a list of them, or null, got \"false\"")
        );
        assert_eq!((f.token_ids("one").unwrap(), f.token_ids("null").unwrap()), (vec![1], vec![]));
        assert_eq!(error(f.extent("absent")), "dir/config.json: absent is missing");
        assert!(error(Fields::new(&json!([1]), Path::new("x"))).contains("expected a JSON object, got [1]"));
    }

    #[test]
    fn null_is_not_missing() {
        let json = json!({"window": null});
        let f = Fields::new(&json, Path::new("c")).unwrap();
        assert_eq!(f.nullable_extent("window", Some(4096)).unwrap(), None);
        assert_eq!(f.nullable_extent("absent", Some(4096)).unwrap(), Some(4096));
        assert!(f.is_null("window") && !f.has("window") && !f.is_null("absent"));
    }

    #[test]
    fn what_nobody_asked_for_is_known_by_name() {
        let json = json!({"a": 1, "rope": {"factor": 2, "beta": 3}, "c": 4, "d": null});
        let f = Fields::new(&json, Path::new("c.json")).unwrap();
        f.number("a").unwrap();
        let rope = f.object("rope").unwrap().unwrap();
        rope.number("factor").unwrap();
        assert_eq!(rope.unknown(), ["rope.beta"]);
        assert!(error(rope.refuse_unknown()).contains("c.json: rope.beta is 3: this field is not known"));
        assert_eq!(f.unknown(), ["c", "d"]);
        f.ignore(&["c"]);
        f.refuse_unknown().unwrap();
    }

    #[test]
    fn long_values_are_cut_in_messages() {
        let json = json!({"a": "é".repeat(200)});
        let f = Fields::new(&json, Path::new("c")).unwrap();
        assert!(error(f.number("a")).len() < 300);
    }
}
