//! What a run is of, as values that are compared one by one when it is resumed, so that no other run is taken for it.

use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Errors: Config, naming the first thing that another run had otherwise. `left`: what that run left, for the message; free: names
/// of what may differ.
pub(crate) fn check_same(left: &Path, theirs: &Value, ours: &Value, free: &[&str]) -> Result<()> {
    let Some((name, theirs, ours)) = difference("", theirs, ours, free) else { return Ok(()) };
    let message = format!(
        "{} is of a run with {name} {theirs}, this one has {ours}; resume with the options that it had, or begin in another folder",
        left.display()
    );
    Err(Error::config("resume", message))
}

/// The first value that differs, by its name.
fn difference<'a>(name: &str, a: &'a Value, b: &'a Value, free: &[&str]) -> Option<(String, &'a Value, &'a Value)> {
    match (a, b) {
        (Value::Object(these), Value::Object(those)) => {
            let keys = these.keys().chain(those.keys().filter(|key| !these.contains_key(*key)));
            let below = |key: &String| if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            let get = |of: &'a Map<String, Value>, key: &String| of.get(key).unwrap_or(&Value::Null);
            keys.map(|key| (below(key), get(these, key), get(those, key)))
                .find_map(|(name, these, those)| difference(&name, these, those, free))
        }
        _ if a == b || free.contains(&name) => None,
        _ => Some((name.to_owned(), a, b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn another_run_is_named_by_what_it_had_otherwise() {
        let run = json!({"training": {"learning_rate": 0.1, "max_steps": 5}, "adapter": {"r": 8}});
        let check = |other: &Value| check_same(Path::new("checkpoint-3"), &run, other, &["training.max_steps"]);
        let longer = json!({"training": {"learning_rate": 0.1, "max_steps": 9}, "adapter": {"r": 8}});
        assert!(check(&longer).is_ok());
        let other = json!({"training": {"learning_rate": 0.1, "max_steps": 5}, "adapter": null});
        let message = check(&other).unwrap_err().to_string();
        assert!(message.contains(r#"checkpoint-3 is of a run with adapter {"r":8}, this one has null"#), "{message}");
        let more = json!({"training": {"learning_rate": 0.1, "max_steps": 5}, "adapter": {"r": 8}, "qat": 1});
        let message = check(&more).unwrap_err().to_string();
        assert!(message.contains("with qat null, this one has 1"), "{message}");
    }
}
