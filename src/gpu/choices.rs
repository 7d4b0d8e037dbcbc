//! Which of several ways to compute the same is taken, by name: as it was measured, or as a file says. Nothing here knows what the names
//! stand for.

use crate::{Error, Result};
use std::{collections::BTreeMap, sync::Mutex, time::Duration};

#[derive(Default)]
struct State {
    made: BTreeMap<String, String>,
    /// What was asked for and has no choice yet, with the ways that there are.
    open: BTreeMap<String, Vec<String>>,
    /// How long measuring may still take.
    left: Duration,
}

/// The choices made for a device, by what is computed. None are made unless somebody asks for it: kernels then take the first of their ways.
#[derive(Default)]
pub struct Choices(Mutex<State>);

impl Choices {
    fn state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().expect("no thread panics while it holds the choices"))
    }

    /// Whether there are choices, or some are to be made.
    pub(crate) fn is_used(&self) -> bool {
        self.state(|state| !state.made.is_empty() || !state.left.is_zero())
    }

    /// The place in `ways` of the one that is taken for `what`: 0 where none was chosen. Errors: Config where one was chosen that is not
    /// among them.
    pub(crate) fn of(&self, what: &str, ways: &[String]) -> Result<usize> {
        self.state(|state| {
            let Some(way) = state.made.get(what) else {
                if !state.left.is_zero() && ways.len() > 1 {
                    state.open.insert(what.to_owned(), ways.to_vec());
                }
                return Ok(0);
            };
            ways.iter().position(|known| known == way).ok_or_else(|| {
                let message = format!("{what} by {way}, which this device does not have; it has {}", ways.join(", "));
                Error::config("choices", message)
            })
        })
    }

    /// What was asked for since the last call and has no choice, with the ways that there are.
    pub(crate) fn take_open(&self) -> BTreeMap<String, Vec<String>> {
        self.state(|state| std::mem::take(&mut state.open))
    }

    /// Takes `way` for `what` from now on; without a way the choice is open again.
    pub(crate) fn choose(&self, what: &str, way: Option<&str>) {
        self.state(|state| match way {
            Some(way) => state.made.insert(what.to_owned(), way.to_owned()),
            None => state.made.remove(what),
        });
    }

    /// How long measuring may still take.
    pub fn time_left(&self) -> Duration {
        self.state(|state| state.left)
    }

    /// Lets products be measured when they are first recorded, for so long in all; zero: no more are measured.
    pub fn measure_for(&self, time: Duration) {
        self.state(|state| state.left = time);
    }

    /// All choices, to be kept or repeated.
    pub fn all(&self) -> BTreeMap<String, String> {
        self.state(|state| state.made.clone())
    }

    /// Makes these choices, beside those that were made. What is recorded from now on follows them.
    pub fn repeat(&self, choices: &BTreeMap<String, String>) {
        self.state(|state| state.made.extend(choices.clone()));
    }

    /// Makes these choices and no others from now on; nothing more is measured. Whether there were others.
    pub(crate) fn replace(&self, choices: &BTreeMap<String, String>) -> bool {
        self.state(|state| {
            state.left = Duration::ZERO;
            std::mem::replace(&mut state.made, choices.clone()) != *choices
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways() -> Vec<String> {
        ["a", "b"].map(str::to_owned).to_vec()
    }

    #[test]
    fn nothing_is_open_unless_it_is_to_be_measured() {
        let choices = Choices::default();
        assert!(!choices.is_used());
        assert_eq!(choices.of("x", &ways()).unwrap(), 0);
        assert!(choices.take_open().is_empty());
        choices.measure_for(Duration::from_secs(1));
        assert!(choices.is_used());
        assert_eq!(choices.of("x", &ways()).unwrap(), 0);
        choices.of("only one way", &ways()[..1]).unwrap();
        assert_eq!(choices.take_open(), BTreeMap::from([("x".to_owned(), ways())]));
        assert!(choices.take_open().is_empty());
    }

    #[test]
    fn a_choice_is_repeated_and_one_that_is_not_there_is_refused() {
        let choices = Choices::default();
        choices.choose("x", Some("b"));
        let other = Choices::default();
        other.repeat(&choices.all());
        assert_eq!(other.of("x", &ways()).unwrap(), 1);
        other.choose("x", Some("c"));
        let error = other.of("x", &ways()).unwrap_err().to_string();
        assert!(error.contains("x by c") && error.ends_with("it has a, b"), "{error}");
        other.choose("x", None);
        assert!(!other.is_used());
    }
}
