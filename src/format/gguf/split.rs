//! Models in several GGUF files, `NAME-00001-of-00003.gguf` and so on, joined into one. The first part has the metadata; each says
//! which one it is (`split.no`, from 0) and of how many (`split.count`).

use super::Gguf;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// More parts are no model that exists.
const MAX_PARTS: u64 = 9999;

/// The whole model that `part` belongs to, whichever part it is. Errors: Io, Format where a part is missing or is another's.
pub(super) fn join(part: Gguf) -> Result<Gguf> {
    let count = match part.uint("split.count")? {
        None | Some(0 | 1) => return Ok(part),
        Some(count) if count <= MAX_PARTS => count as usize,
        Some(count) => return Err(Error::format(&part.path, format!("metadata split.count is {count}"))),
    };
    let asked = part.path.clone();
    let tensors = part.uint("split.tensors.count")?;
    let mut parts = Vec::with_capacity(count);
    for number in 1..=count {
        let path = name_of(&asked, number, count)?;
        if !path.exists() {
            let message = format!("part {number} of {count} of the model is missing: {} is not there", path.display());
            return Err(Error::format(&asked, message));
        }
        let part = Gguf::open_part(path)?;
        let (no, of) = (part.uint("split.no")?, part.uint("split.count")?);
        if (no, of) != (Some(number as u64 - 1), Some(count as u64)) {
            let message = format!("expected split.no {} and split.count {count}, got {no:?} and {of:?}", number - 1);
            return Err(Error::format(&part.path, message));
        }
        parts.push(part);
    }
    let mut parts = parts.into_iter();
    let mut whole = parts.next().expect("there are two parts at least");
    for part in parts {
        let number = whole.others.len() + 1;
        for (name, info) in part.tensors {
            let info = super::Info { part: number, ..info };
            if whole.tensors.insert(name.clone(), info).is_some() {
                return Err(Error::format(&part.path, format!("the tensor {name} is in another part too")));
            }
        }
        whole.others.push((part.path, part.map));
    }
    match tensors {
        Some(expected) if expected != whole.tensors.len() as u64 => {
            let message = format!("the parts hold {} tensors, split.tensors.count is {expected}", whole.tensors.len());
            Err(Error::format(&asked, message))
        }
        _ => Ok(whole),
    }
}

/// The name of part `number` beside any other part. Errors: Format for a name that does not tell.
fn name_of(part: &Path, number: usize, count: usize) -> Result<PathBuf> {
    let name = part.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let end = format!("-of-{count:05}.gguf");
    let base = name.strip_suffix(&end).and_then(|rest| {
        let (base, digits) = rest.split_at_checked(rest.len().checked_sub(6)?)?;
        let digits = digits.strip_prefix('-')?;
        digits.bytes().all(|b| b.is_ascii_digit()).then_some(base)
    });
    let Some(base) = base else {
        let message = format!(
            "this is one of {count} parts of a model, which are found by their names: expected NAME-00001{end} and so on"
        );
        return Err(Error::format(part, message));
    };
    Ok(part.with_file_name(format!("{base}-{number:05}{end}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_by_their_names() {
        let part = Path::new("dir/m-00002-of-00003.gguf");
        assert_eq!(name_of(part, 1, 3).unwrap(), Path::new("dir/m-00001-of-00003.gguf"));
        for name in ["m.gguf", "m-00001-of-00002.gguf", "-of-00003.gguf", "é-of-00003.gguf", "0001-of-00003.gguf"] {
            let error = name_of(Path::new(name), 1, 3).unwrap_err().to_string();
            assert!(error.contains("NAME-00001-of-00003.gguf"), "{error}");
        }
    }
}
