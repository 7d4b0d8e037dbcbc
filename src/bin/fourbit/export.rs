//! What is said of a model that was written.

use crate::output::{Output, bytes};
use fourbit::{export::Summary, method::Recipe};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Tells what was written to `output`; `told` is added to the result.
pub fn tell(out: Output, output: &Path, recipe: &Recipe, summary: &Summary, mut told: Map<String, Value>) {
    let fallbacks = match summary.fallbacks {
        0 => String::new(),
        n => format!(", {n} in a type with smaller blocks, since their rows are no multiple of 256"),
    };
    out.line(format_args!(
        "{}: {} tensors in {recipe}{fallbacks}, {} others; {} (from {})",
        output.display(),
        summary.quantized,
        summary.others,
        bytes(summary.bytes),
        bytes(summary.source_bytes),
    ));
    let result = json!({
        "output": output.display().to_string(),
        "recipe": recipe.to_string(),
        "quantized": summary.quantized,
        "fallbacks": summary.fallbacks,
        "others": summary.others,
        "bytes": summary.bytes,
        "source_bytes": summary.source_bytes,
    });
    told.extend(result.as_object().cloned().unwrap_or_default());
    out.result(&Value::Object(told));
}
