#!/usr/bin/env python3
"""Writes tests/golden/preference.safetensors and preference.json: DPO and ORPO as TRL computes them.

    python scripts/make_preference_golden.py      needs torch, transformers, peft, accelerate, datasets and trl 1.16; runs on CPU

The model is assets/embedded in float32, with a LoRA adapter (r 4 on q_proj, v_proj and down_proj) whose values are random, so that the
adapter and the base disagree. The rows below, in three forms, go through TRL's own preparation; `rows` has what it made of them. Of each
objective the loss and the gradients of one batch of all rows, the metrics that TRL logs, and the losses of ten AdamW steps over them.
"""
import json
import tempfile
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "assets/embedded"
torch.set_num_threads(1)

user = lambda text: {"role": "user", "content": text}
assistant = lambda text: {"role": "assistant", "content": text}
ROWS = [
    {"prompt": [user("What colour is grass?")], "chosen": [assistant("Arr! Grass be green, matey!")], "rejected": [assistant("Grass is green.")]},
    {"prompt": [user("Name a day."), assistant("Monday."), user("Another one, please.")], "chosen": [assistant("Arr! Tuesday, matey!")],
     "rejected": [assistant("I would rather not name another day of the week.")]},
    {"prompt": [user("Hello")], "chosen": [assistant("Arr!")], "rejected": [assistant("Hello, how can I help you today?")]},
]
TEXTS = [
    {"prompt": "The opposite of hot is", "chosen": " cold, matey!", "rejected": " not known to me."},
    {"prompt": "One, two,", "chosen": " three", "rejected": " four, five"},
]
IMPLICIT = [
    {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]} for row in ROWS[:2]
]


def model(tokenizer):
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")
    base.config.pad_token_id = tokenizer.pad_token_id
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    return base, config


def fill(peft_model):
    generator = torch.Generator().manual_seed(5)
    for name, parameter in sorted(peft_model.named_parameters()):
        if "lora_" in name:
            spread = 0.05 if "lora_A" in name else 0.02
            parameter.data = spread * torch.randn(parameter.shape, generator=generator)


def key(name):
    return name.replace("base_model.model.", "").replace(".default.weight", "")


def prepared(rows, tokenizer, folder):
    base, config = model(tokenizer)
    arguments = DPOConfig(folder, bf16=False, use_cpu=True, report_to=[], max_length=None)
    trainer = DPOTrainer(base, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=config)
    return [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in trainer.train_dataset]


def measure(kind, tokenizer, folder):
    base, config = model(tokenizer)
    options = dict(bf16=False, use_cpu=True, report_to=[], max_length=512, per_device_train_batch_size=len(ROWS), learning_rate=1e-3,
                   max_steps=10, logging_steps=1, gradient_checkpointing=False, lr_scheduler_type="constant", weight_decay=0.0,
                   max_grad_norm=1.0, save_strategy="no", disable_tqdm=True, optim="adamw_torch")
    rows = Dataset.from_list(ROWS)
    if kind == "dpo":
        trainer = DPOTrainer(base, args=DPOConfig(folder, **options), train_dataset=rows, processing_class=tokenizer, peft_config=config)
    else:
        trainer = ORPOTrainer(base, args=ORPOConfig(folder, **options), train_dataset=rows, processing_class=tokenizer, peft_config=config)
    fill(trainer.model)
    start = {key(name): p.detach().clone() for name, p in trainer.model.named_parameters() if "lora_" in name}
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    grads = {key(name): p.grad.detach().clone() for name, p in trainer.model.named_parameters() if "lora_" in name}
    metrics = {name: values[-1] for name, values in (trainer._metrics if kind == "dpo" else trainer._stored_metrics)["train"].items()}
    trainer.model.zero_grad()
    names = ["chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"]
    # What ORPO's own preparation made of the rows: other than DPO's, it puts EOS behind what the template ends with.
    rows = [{name: row[name] for name in names} for row in trainer.train_dataset] if kind == "orpo" else None
    trainer.train()
    log = [[e["loss"], e["grad_norm"], e["rewards/margins"]] for e in trainer.state.log_history if "loss" in e]
    return start, grads, {"loss": loss.item(), "metrics": metrics, "steps": log, "rows": rows}


tokenizer = AutoTokenizer.from_pretrained(MODEL)
tensors, facts = {}, {"versions": {m.__name__: m.__version__ for m in (torch, transformers, trl)}, "data": ROWS, "texts": TEXTS, "implicit": IMPLICIT}
with tempfile.TemporaryDirectory() as folder:
    facts["rows"] = prepared(ROWS, tokenizer, folder)
    facts["rows_of_texts"] = prepared(TEXTS, tokenizer, folder)
    facts["rows_of_implicit"] = prepared(IMPLICIT, tokenizer, folder)
    for kind in ("dpo", "orpo"):
        start, grads, facts[kind] = measure(kind, tokenizer, folder)
        tensors |= {f"adapter.{name}": value for name, value in start.items()}
        tensors |= {f"{kind}.{name}": value for name, value in grads.items()}
save_file({name: value.contiguous() for name, value in sorted(tensors.items())}, ROOT / "tests/golden/preference.safetensors")
(ROOT / "tests/golden/preference.json").write_text(json.dumps(facts, indent=1) + "\n")
