//! The library's errors in the words of the command line: there its own fields stand in them, here the flags that set these.

use fourbit::Error;

/// Fields that an error may be about, with their flags. Others are called as their flags are.
const NAMES: [(&str, &str); 18] = [
    ("act_order", "--no-act-order"),
    ("alpha", "--alpha"),
    ("calibration", "--calibration"),
    ("calibration_length", "--calibration-length"),
    ("calibration_samples", "--calibration-samples"),
    ("clip", "--no-clip"),
    ("damping", "--damping"),
    ("finetune_blocks", "--finetune-blocks"),
    ("finetune_epochs", "--finetune-epochs"),
    ("finetune_lr", "--finetune-lr"),
    ("keep_better", "--keep-better"),
    ("logging_steps", "--logging-steps"),
    ("output", "--output"),
    ("seed", "--method-seed"),
    ("threshold", "--threshold"),
    ("true_sequential", "--true-sequential"),
    ("weights", "--weight-observer"),
    ("window", "--max-seq-length"),
];

/// What the library advises, in backticks there, and how that is done here. A name without them is one of a file.
const ADVICE: [(&str, &str); 10] = [
    ("`GpuOptions::device`", "--device"),
    ("`Quantization::AsStored`", "--quantization none"),
    ("`window`", "--max-seq-length"),
    ("`batch_size`", "--batch-size"),
    ("`gradient_checkpointing`", "--gradient-checkpointing"),
    ("`load_adapter`", "--adapter"),
    ("`objective`", "--objective"),
    ("`max_seq_length`", "--max-seq-length"),
    ("`max_row_bytes`", "--max-row-bytes"),
    ("`method::Merge`", "fourbit merge --quantization none --method rtn --scheme bf16"),
];

fn flag(name: String) -> String {
    NAMES.iter().find(|row| row.0 == name).map_or(name, |row| row.1.to_owned())
}

fn advice(text: String) -> String {
    ADVICE.iter().fold(text, |text, (theirs, ours)| text.replace(theirs, ours))
}

/// The same error with flags for fields.
pub fn told(error: Error) -> Error {
    match error {
        Error::Config { name, message } => Error::Config { name: flag(name), message: advice(message) },
        Error::Data { path, row, message } => Error::Data { path, row, message: advice(message) },
        Error::Format { path, message } => Error::Format { path, message: advice(message) },
        Error::NoAdapter { message } => Error::NoAdapter { message: advice(message) },
        Error::OutOfMemory { what, needed, available, remedy } => {
            Error::OutOfMemory { what, needed, available, remedy: advice(remedy) }
        }
        Error::Shape { op, expected, got } => Error::Shape { op, expected: advice(expected), got },
        Error::Unsupported { what, got, supported } => Error::Unsupported { what, got, supported: advice(supported) },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fourbit::method::{Method, MethodOptions, Recipe};

    #[test]
    fn every_option_of_a_method_is_told_by_its_flag() {
        let rtn = Recipe::new(Method::Rtn, Method::Rtn.default_scheme());
        let default = MethodOptions::default();
        for (options, flag) in [
            (MethodOptions { act_order: false, ..default }, "--no-act-order"),
            (MethodOptions { damping: 0.5, ..default }, "--damping"),
            (MethodOptions { clip: false, ..default }, "--no-clip"),
            (MethodOptions { alpha: 0.1, ..default }, "--alpha"),
            (MethodOptions { threshold: 1.0, ..default }, "--threshold"),
            (MethodOptions { seed: 1, ..default }, "--method-seed"),
            (MethodOptions { keep_better: true, ..default }, "--keep-better"),
            (MethodOptions { true_sequential: true, ..default }, "--true-sequential"),
            (MethodOptions { finetune_epochs: 1, ..default }, "--finetune-epochs"),
            (MethodOptions { finetune_blocks: 1, ..default }, "--finetune-blocks"),
            (MethodOptions { finetune_lr: 1.0, ..default }, "--finetune-lr"),
        ] {
            let text = told(options.check_taken(&[rtn]).unwrap_err()).to_string();
            assert!(text.starts_with(&format!("{flag}: does nothing for rtn; ")), "{text}");
        }
    }

    #[test]
    fn advice_is_told_in_flags() {
        let remedy = "lower `max_seq_length` or `batch_size`, turn on `gradient_checkpointing`".to_owned();
        let error = Error::OutOfMemory { what: "x".to_owned(), needed: Some(2), available: Some(1), remedy };
        let text = told(error).to_string();
        assert!(text.ends_with("; lower --max-seq-length or --batch-size, turn on --gradient-checkpointing"), "{text}");
        let other = told(Error::config("batch_size", "expected at least 1, got 0")).to_string();
        assert_eq!(other, "batch_size: expected at least 1, got 0");
        let of_a_file = Error::format("quantize_config.json", "batch_size: expected a whole number");
        assert!(told(of_a_file).to_string().ends_with("batch_size: expected a whole number"));
    }
}
