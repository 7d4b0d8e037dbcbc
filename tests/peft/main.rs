//! Adapters other than plain LoRA against PEFT: losses, every gradient, twenty steps, files; and on every scheme. The fixtures and the
//! script that made them are in `tests/golden/peft` and `scripts/make_peft_golden.py`.

#[path = "../support/mod.rs"]
mod support;

#[path = "../reference/mod.rs"]
mod reference;

mod adalora;
mod golden;
mod layer;
mod prompt;
mod schemes;
