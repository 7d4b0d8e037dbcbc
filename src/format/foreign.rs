//! Model files that cannot be read: refused by what they are, with the remedy.

use crate::{Error, Result};
use std::path::Path;

/// How a pointer of Git LFS begins.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Refuses a file that is a pointer of Git LFS. bytes: how it begins, at least. Errors: Format.
pub(super) fn refuse_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    if !bytes.starts_with(LFS) {
        return Ok(());
    }
    let message =
        "this is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`, or download it anew";
    Err(Error::format(path, message))
}

/// What a file is that is neither GGUF nor safetensors, by how it begins. Errors: Format where it is known.
pub(super) fn refuse_known(path: &Path, bytes: &[u8]) -> Result<()> {
    refuse_pointer(path, bytes)?;
    let old = [b"lmgg", b"fmgg", b"tjgg", b"algg"].iter().any(|magic| bytes.starts_with(*magic));
    let pickled = bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"\x80\x02");
    let message = if old {
        "this is a GGML file of before August 2023, which llama.cpp does not read either; take a GGUF file of the model, or \
         convert the original with llama.cpp's convert_hf_to_gguf.py"
    } else if pickled {
        "these are weights pickled by PyTorch (.bin, .pt, .pth), which may run any code when they are loaded and are not \
         read; write safetensors with transformers: `AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OUTPUT)`"
    } else {
        return Ok(());
    };
    Err(Error::format(path, message))
}

/// The error of a folder without weights that can be read, by what is there instead.
pub(super) fn no_weights(folder: &Path) -> Error {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    let find = |wanted: &dyn Fn(&str) -> bool| names.iter().find(|name| wanted(name)).cloned();
    let (single, index) = (super::SINGLE, super::INDEX);
    let neither = format!("the folder has neither {single} nor {index}");
    let convert = "write safetensors with transformers: \
                   `AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OUTPUT)`";
    let message = if names.iter().any(|name| name == "adapter_config.json") {
        format!("{neither}: it is an adapter; open its base as the model, and this folder with `load_adapter`")
    } else if let Some(name) = find(&|name| name.starts_with("consolidated.")) {
        format!("{neither}: {name} has the names of the authors' own code; take the folder in transformers' format")
    } else if let Some(name) = find(&|name| name.ends_with(".gguf")) {
        format!("{neither}, but {name}: give that file as the model")
    } else if let Some(name) = find(&|name| name.ends_with(".safetensors")) {
        format!("{neither}, but {name}: call it {single} if it holds the whole model")
    } else if let Some(name) = find(&|name| [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end))) {
        format!("{neither}: {name} is pickled by PyTorch, and is not read; {convert}")
    } else {
        format!("{neither}; weights in other formats (.bin, .pt) need converting")
    };
    Error::format(folder, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_read_is_named_with_the_remedy() {
        for (bytes, what) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"[..], "git lfs pull"),
            (b"lmgg\x00", "GGML file"),
            (b"tjgg\x03\0\0\0", "GGML file"),
            (b"PK\x03\x04rest", "pickled"),
            (b"\x80\x02\x8a", "pickled"),
        ] {
            let error = refuse_known(Path::new("m.bin"), bytes).unwrap_err().to_string();
            assert!(error.contains(what) && error.starts_with("m.bin: "), "{error}");
        }
        refuse_known(Path::new("m"), b"GGUF").unwrap();
    }

    #[test]
    fn folders_without_weights_tell_what_they_hold() {
        for (file, what) in [
            ("adapter_config.json", "load_adapter"),
            ("pytorch_model.bin", "pytorch_model.bin is pickled"),
            ("consolidated.00.pth", "consolidated.00.pth"),
            ("model-q4.gguf", "give that file"),
            ("gptq_model-4bit-128g.safetensors", "call it model.safetensors"),
            ("README.md", "neither"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(file), "x").unwrap();
            let error = no_weights(folder.path()).to_string();
            assert!(error.contains(what), "{file}: {error}");
        }
    }
}
