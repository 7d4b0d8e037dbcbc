//! Which modules an adapter's configuration names, and which rank and alpha each has, as PEFT 0.21 reads it. This knows
//! names only, no tensors.

use crate::{Error, Result, format::fields::Fields};
use fancy_regex::Regex;
use serde_json::{Value, json};

/// Names, or one pattern.
#[derive(Clone, Debug)]
pub enum TargetModules {
    /// Every linear layer but the head (`"all-linear"`).
    AllLinear,
    /// Modules whose name is one of these or ends in one after a dot.
    Names(Vec<String>),
    /// Modules whose whole name a regular expression matches.
    Pattern(Pattern),
}

impl TargetModules {
    pub(super) fn to_json(&self) -> Value {
        match self {
            TargetModules::AllLinear => json!("all-linear"),
            TargetModules::Names(names) => json!(names),
            TargetModules::Pattern(pattern) => json!(pattern.text),
        }
    }

    /// Whether the linear layer `module` (its full name) is meant; the caller leaves out the head. Errors: Format for a
    /// pattern that takes too long.
    pub fn matches(&self, module: &str) -> Result<bool> {
        match self {
            TargetModules::AllLinear => Ok(true),
            TargetModules::Names(names) => Ok(names.iter().any(|name| ends_in(module, name))),
            TargetModules::Pattern(pattern) => pattern.matches(module),
        }
    }
}

impl PartialEq for TargetModules {
    fn eq(&self, other: &TargetModules) -> bool {
        match (self, other) {
            (TargetModules::AllLinear, TargetModules::AllLinear) => true,
            (TargetModules::Names(a), TargetModules::Names(b)) => a == b,
            (TargetModules::Pattern(a), TargetModules::Pattern(b)) => a == b,
            _ => false,
        }
    }
}

fn ends_in(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// A regular expression that Python and this program read alike.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// As the file has it.
    pub text: String,
    /// Where it stands: the file and the field.
    place: String,
    compiled: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// `text` between `before` and `after`. Errors: Unsupported for what Python may read in another way.
    fn new(fields: &Fields, field: &str, text: &str, before: &str, after: &str) -> Result<Pattern> {
        let place = format!("{field} in {}", fields.path().display());
        let refused = |why: &str| Error::unsupported(&place, text, why);
        if let Some(why) = differs_from_python(text) {
            return Err(refused(why));
        }
        let compiled = Regex::new(&format!("{before}(?:{text}){after}"));
        let compiled = compiled.map_err(|error| refused(&format!("a regular expression that can be read: {error}")))?;
        Ok(Pattern { text: text.to_owned(), place, compiled })
    }

    /// The module of this full name.
    fn of_name(name: &str) -> Pattern {
        let compiled = Regex::new(&format!(r"\A(?:.*\.)?(?:{})\z", fancy_regex::escape(name)));
        Pattern {
            text: name.to_owned(),
            place: String::new(),
            compiled: compiled.expect("an escaped name is a pattern"),
        }
    }

    /// Python's `re.fullmatch`.
    fn full(fields: &Fields, field: &str, text: &str) -> Result<Pattern> {
        Pattern::new(fields, field, text, r"\A", r"\z")
    }

    fn matches(&self, module: &str) -> Result<bool> {
        Ok(self.index(module)?.is_some())
    }

    /// The text of the last group where it is a number, else 0: by which a match is recognized at all.
    fn index(&self, module: &str) -> Result<Option<i64>> {
        let found = self.compiled.captures(module).map_err(|error| {
            Error::unsupported(
                &self.place,
                &self.text,
                format!("a pattern that is matched in reasonable time: {error}"),
            )
        })?;
        Ok(found.map(|groups| groups.name("layer_index").and_then(|g| g.as_str().parse().ok()).unwrap_or(0)))
    }
}

/// Why a pattern may mean something else in Python, if it may. What is left means the same on names of modules, which are
/// ASCII without line ends.
fn differs_from_python(text: &str) -> Option<&'static str> {
    let mut chars = text.chars().peekable();
    let mut in_class = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(e) if "dDwWsSbB".contains(e) || (e.is_ascii() && !e.is_ascii_alphanumeric()) => {}
                Some(e) if e.is_ascii_digit() && e != '0' && !in_class => {}
                _ => {
                    return Some(
                        "a pattern whose only escapes are \\d \\w \\s \\b, groups by number and escaped punctuation",
                    );
                }
            },
            '[' if in_class => return Some("a pattern without [ inside of []"),
            '[' => {
                in_class = true;
                // A ] that comes first is a character of the class.
                chars.next_if_eq(&'^');
                chars.next_if_eq(&']');
            }
            ']' => in_class = false,
            '&' | '~' | '-' if in_class && chars.peek() == Some(&c) => {
                return Some("a pattern without && -- ~~ inside of []");
            }
            '(' if !in_class && chars.next_if_eq(&'?').is_some() => {
                let rest: String = chars.clone().take(2).collect();
                if !["=", "!", ":", "<=", "<!", "P<", "P="].iter().any(|known| rest.starts_with(known)) {
                    return Some("a pattern whose only extensions are (?: (?= (?! (?<= (?<! (?P<name>");
                }
            }
            '{' if !in_class && !chars.peek().is_some_and(char::is_ascii_digit) => {
                return Some("a pattern with numbers in {}");
            }
            _ => {}
        }
    }
    None
}

/// `layers_to_transform` and `layers_pattern`.
#[derive(Clone, Debug, PartialEq)]
struct Layers {
    numbers: Vec<i64>,
    /// What stands before a layer's number.
    patterns: Vec<Pattern>,
    /// Whether the file gives the patterns.
    given: bool,
}

/// Which modules have an adapter, and of which size.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    /// What `target_modules` says.
    pub modules: TargetModules,
    exclude: Option<TargetModules>,
    layers: Option<Layers>,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

impl Targets {
    /// These modules, with the ranks and alphas of those (by full name) that differ from the rest.
    pub fn of<'a>(
        modules: TargetModules,
        ranks: impl IntoIterator<Item = (&'a String, &'a usize)>,
        alphas: impl IntoIterator<Item = (&'a String, &'a f64)>,
    ) -> Targets {
        let ranks = ranks.into_iter().map(|(name, rank)| (Pattern::of_name(name), *rank)).collect();
        let alphas = alphas.into_iter().map(|(name, alpha)| (Pattern::of_name(name), *alpha)).collect();
        Targets { modules, exclude: None, layers: None, ranks, alphas }
    }

    /// Puts the fields that say which modules are meant into the JSON of a configuration.
    pub(super) fn write_modules(&self, json: &mut Value) {
        json["target_modules"] = self.modules.to_json();
        json["exclude_modules"] = self.exclude.as_ref().map_or(Value::Null, TargetModules::to_json);
    }

    /// The same, and those of layers by number.
    pub(super) fn write_layers(&self, json: &mut Value) {
        self.write_modules(json);
        if let Some(layers) = &self.layers {
            json["layers_to_transform"] = json!(layers.numbers);
            if layers.given {
                json["layers_pattern"] = layers.patterns.iter().map(|p| p.text.as_str()).collect();
            }
        }
    }

    /// Puts all of the fields there.
    pub(super) fn write(&self, json: &mut Value) {
        self.write_layers(json);
        let entry = |text: &str, value: Value| (text.to_owned(), value);
        json["rank_pattern"] = Value::Object(self.ranks.iter().map(|(p, r)| entry(&p.text, json!(r))).collect());
        json["alpha_pattern"] = Value::Object(self.alphas.iter().map(|(p, a)| entry(&p.text, whole(*a))).collect());
    }

    /// Of a kind of adapter whose modules are all of one form: which they are.
    pub(super) fn read_modules(fields: &Fields) -> Result<Targets> {
        let modules = modules(fields, "target_modules")?
            .ok_or_else(|| fields.fail("target_modules", "a list of names, a regular expression, or \"all-linear\""))?;
        // PEFT knows no shorthand here: as a pattern it matches no module.
        let exclude = exclusion(fields)?.filter(|exclude| *exclude != TargetModules::AllLinear);
        Ok(Targets { modules, exclude, layers: None, ranks: Vec::new(), alphas: Vec::new() })
    }

    /// The same, and of layers by number.
    pub(super) fn read_layers(fields: &Fields) -> Result<Targets> {
        let targets = Targets::read_modules(fields)?;
        let layers = layers(fields)?;
        if layers.is_some() && !matches!(targets.modules, TargetModules::Names(_)) {
            return Err(fields.fail("layers_to_transform", "null where target_modules is no list, as PEFT does"));
        }
        Ok(Targets { layers, ..targets })
    }

    pub(super) fn read(fields: &Fields) -> Result<Targets> {
        let targets = Targets::read_layers(fields)?;
        let pattern = |field: &str, key: &str| Pattern::new(fields, field, key, r"\A(?:.*\.)?", r"\z");
        let sizes = |field: &str| -> Result<Vec<(Pattern, Value)>> {
            match fields.get(field) {
                None | Some(Value::Null) => Ok(Vec::new()),
                Some(Value::Object(map)) => map.iter().map(|(key, v)| Ok((pattern(field, key)?, v.clone()))).collect(),
                Some(_) => Err(fields.fail(field, "an object from patterns to numbers")),
            }
        };
        let mut ranks = Vec::new();
        for (pattern, value) in sizes("rank_pattern")? {
            let rank = value.as_u64().filter(|r| (1..=MAX_RANK as u64).contains(r));
            let rank = rank.ok_or_else(|| fields.fail("rank_pattern", format!("ranks from 1 to {MAX_RANK}")))?;
            ranks.push((pattern, rank as usize));
        }
        let mut alphas = Vec::new();
        for (pattern, value) in sizes("alpha_pattern")? {
            alphas.push((pattern, value.as_f64().ok_or_else(|| fields.fail("alpha_pattern", "numbers"))?));
        }
        Ok(Targets { ranks, alphas, ..targets })
    }

    /// Whether the linear layer `module` (its full name) has an adapter. Errors: Unsupported for a pattern that takes too
    /// long.
    pub fn contain(&self, module: &str) -> Result<bool> {
        if let Some(exclude) = &self.exclude
            && exclude.matches(module)?
        {
            return Ok(false);
        }
        if !self.modules.matches(module)? {
            return Ok(false);
        }
        // A module under its full name is meant whatever its layer.
        let by_full_name = matches!(&self.modules, TargetModules::Names(names) if names.iter().any(|n| n == module));
        let Some(layers) = self.layers.as_ref().filter(|_| !by_full_name) else { return Ok(true) };
        for pattern in &layers.patterns {
            if let Some(layer) = pattern.index(module)? {
                return Ok(layers.numbers.contains(&layer));
            }
        }
        Ok(false)
    }

    /// The rank of a module that has an adapter. The first pattern that fits decides. Errors: as [`Targets::contain`].
    pub fn rank(&self, module: &str, default: usize) -> Result<usize> {
        first(&self.ranks, module).map(|found| found.unwrap_or(default))
    }

    /// The alpha of a module that has an adapter. Errors: as [`Targets::contain`].
    pub fn alpha(&self, module: &str, default: f64) -> Result<f64> {
        first(&self.alphas, module).map(|found| found.unwrap_or(default))
    }
}

/// A number as JSON, without a fraction where it has none.
pub(super) fn whole(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// No adapter has a larger rank.
pub(super) const MAX_RANK: usize = 65536;

fn first<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if pattern.matches(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

pub(super) fn modules(fields: &Fields, name: &str) -> Result<Option<TargetModules>> {
    let names = |items: &[Value]| items.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.to_lowercase() == "all-linear" => Ok(Some(TargetModules::AllLinear)),
        Some(Value::String(text)) => Ok(Some(TargetModules::Pattern(Pattern::full(fields, name, text)?))),
        Some(Value::Array(items)) => match names(items) {
            Some(names) => Ok(Some(TargetModules::Names(names))),
            None => Err(fields.fail(name, "a list of names, or a regular expression")),
        },
        Some(_) => Err(fields.fail(name, "a list of names, or a regular expression")),
    }
}

/// `exclude_modules`; an empty list or text is none.
fn exclusion(fields: &Fields) -> Result<Option<TargetModules>> {
    match fields.get("exclude_modules") {
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        _ => modules(fields, "exclude_modules"),
    }
}

fn layers(fields: &Fields) -> Result<Option<Layers>> {
    let expected = "a layer's number, or a list of them";
    let layers = match fields.get("layers_to_transform") {
        None | Some(Value::Null) => None,
        Some(Value::Array(items)) => {
            let numbers = items.iter().map(Value::as_i64).collect::<Option<Vec<_>>>();
            Some(numbers.ok_or_else(|| fields.fail("layers_to_transform", expected))?)
        }
        Some(value) => Some(vec![value.as_i64().ok_or_else(|| fields.fail("layers_to_transform", expected))?]),
    };
    let pattern =
        |text: &str, before: &str| Pattern::new(fields, "layers_pattern", text, before, r"\.(?P<layer_index>\d+)\.");
    let texts: Vec<&str> = match fields.get("layers_pattern") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) if text.is_empty() => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => {
            let texts = items.iter().map(Value::as_str).collect::<Option<Vec<_>>>();
            texts.ok_or_else(|| fields.fail("layers_pattern", "a pattern, or a list of them"))?
        }
        Some(_) => return Err(fields.fail("layers_pattern", "a pattern, or a list of them")),
    };
    if layers.is_none() && !texts.is_empty() {
        return Err(fields.fail("layers_pattern", "null without layers_to_transform, as PEFT does"));
    }
    let Some(numbers) = layers.filter(|layers| !layers.is_empty()) else { return Ok(None) };
    let given = !texts.is_empty();
    let patterns = match given {
        false => vec![pattern("[^.]*", r"\A.*?\.")?],
        true => texts.into_iter().map(|text| pattern(text, r"\A(?:|.*?\.)")).collect::<Result<_>>()?,
    };
    Ok(Some(Layers { numbers, patterns, given }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(json: Value) -> Result<Targets> {
        Targets::read(&Fields::new(&json, "adapter_config.json".as_ref())?)
    }

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const Q11: &str = "model.layers.11.self_attn.q_proj";
    const DOWN1: &str = "model.layers.1.mlp.down_proj";

    #[test]
    fn names_match_at_dots_only() {
        let t = targets(json!({"target_modules": ["q_proj", "mlp.down_proj"]})).unwrap();
        for (module, want) in [
            (Q0, true),
            ("q_proj", true),
            ("model.layers.0.self_attn.xq_proj", false),
            (DOWN1, true),
            ("model.layers.1.down_proj", false),
        ] {
            assert_eq!(t.contain(module).unwrap(), want, "{module}");
        }
        assert!(targets(json!({"target_modules": "ALL-linear"})).unwrap().contain("anything").unwrap());
    }

    #[test]
    fn layers_are_the_first_number_and_full_names_stand_above_them() {
        let t = targets(json!({"target_modules": ["q_proj", DOWN1], "layers_to_transform": 11})).unwrap();
        assert!(t.contain(Q11).unwrap() && t.contain(DOWN1).unwrap() && !t.contain(Q0).unwrap());
        for (pattern, want) in [(json!("layers"), true), (json!(["h", "layers"]), true), (json!("h"), false)] {
            let json = json!({"target_modules": ["q_proj"], "layers_to_transform": [0, 3], "layers_pattern": pattern});
            let t = targets(json).unwrap();
            assert_eq!(t.contain(Q0).unwrap(), want);
            assert!(!t.contain(Q11).unwrap());
        }
        assert!(targets(json!({"target_modules": ".*", "layers_to_transform": [0]})).is_err());
        assert!(targets(json!({"target_modules": ["q_proj"], "layers_pattern": "layers"})).is_err());
    }

    #[test]
    fn a_pattern_matches_whole_names_and_exclusion_goes_before() {
        let t =
            targets(json!({"target_modules": r".*\.(q|v)_proj", "exclude_modules": ["layers.11.self_attn.q_proj"]}));
        let t = t.unwrap();
        assert!(t.contain(Q0).unwrap() && !t.contain(Q11).unwrap() && !t.contain(DOWN1).unwrap());
        assert!(!targets(json!({"target_modules": "q_proj"})).unwrap().contain(Q0).unwrap());
        let t = targets(json!({"target_modules": r"(?!.*\.1\.).*_proj", "exclude_modules": ".*q_proj"})).unwrap();
        assert!(!t.contain(DOWN1).unwrap() && !t.contain(Q0).unwrap() && t.contain("a.v_proj").unwrap());
    }

    #[test]
    fn the_first_pattern_that_fits_gives_rank_and_alpha() {
        let json = json!({"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 6},
            "alpha_pattern": {"q_pro.": 3.5, r"model\.layers\.1\.mlp\.down_proj": 7}});
        let t = targets(json).unwrap();
        assert_eq!([Q0, Q11, DOWN1].map(|m| t.rank(m, 4).unwrap()), [2, 6, 4]);
        assert_eq!([Q0, Q11, DOWN1].map(|m| t.alpha(m, 1.0).unwrap()), [3.5, 3.5, 7.0]);
        for bad in [json!({"q_proj": 0}), json!({"q_proj": 4.0}), json!([4])] {
            assert!(targets(json!({"target_modules": ["q_proj"], "rank_pattern": bad})).is_err());
        }
    }

    #[test]
    fn what_python_reads_in_another_way_is_refused() {
        for text in [r"a\Z", r"[a[b]", r"[a&&b]", r"(?i)a", r"a{,3}", r"\pL", r"(?>a)", "(", r"\h", r"(?#x)"] {
            let error = targets(json!({"target_modules": text})).unwrap_err().to_string();
            assert!(error.contains("target_modules") && error.contains("adapter_config.json"), "{text}: {error}");
        }
        // A pattern that backtracks for ever ends in an error.
        let slow = targets(json!({"target_modules": r"(?=(a*)*b)(a*)*\1c"})).unwrap();
        let _ = slow.contain(&"a".repeat(4000)).map_err(|e| assert!(e.to_string().contains("reasonable time")));
    }
}
