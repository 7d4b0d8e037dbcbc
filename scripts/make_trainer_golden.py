#!/usr/bin/env python3
"""Writes tests/golden/trainer.json: what transformers' Trainer reports of short runs, and its learning-rate schedules.

    python scripts/make_trainer_golden.py      needs torch, transformers, peft and accelerate; runs on CPU

The runs train PEFT's adapter tests/golden/tiny/adapter_init on tests/golden/tiny/model, over rows of several lengths in the
order of the list. `log` has [loss, grad_norm, learning_rate, epoch] of each step. `schedules`: the factor of each step.
"""
import json
import math
import tempfile
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, get_scheduler

TINY = Path(__file__).resolve().parent.parent / "tests/golden/tiny"
torch.set_num_threads(1)

generator = torch.Generator().manual_seed(11)
rows = []
for index in range(9):
    ids = torch.randint(3, 256, (5 + (index * 7) % 17,), generator=generator).tolist()
    learned = 2 + index % 4  # of each row another number of tokens, so that the mean of means would be another number
    rows.append({"input_ids": ids, "labels": [-100] * (len(ids) - learned) + ids[-learned:]})


def collate(batch):
    longest = max(len(row["input_ids"]) for row in batch)
    pad = lambda values, fill: values + [fill] * (longest - len(values))
    return {
        "input_ids": torch.tensor([pad(row["input_ids"], 0) for row in batch]),
        "attention_mask": torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in batch]),
        "labels": torch.tensor([pad(row["labels"], -100) for row in batch]),
    }


def run(count, **options):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(TINY / "model", dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, TINY / "adapter_init", is_trainable=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, learning_rate=1e-2, weight_decay=0.01, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no",
            train_sampling_strategy="sequential", disable_tqdm=True, optim="adamw_torch", **options)
        trainer = Trainer(model, arguments, train_dataset=rows[:count], data_collator=collate)
        trainer.train()
    log = [[e["loss"], e["grad_norm"], e["learning_rate"], e["epoch"]] for e in trainer.state.log_history if "loss" in e]
    return {"rows": count, **options, "steps": trainer.state.global_step, "epoch": trainer.state.epoch, "log": log}


runs = [
    run(9, per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=3, lr_scheduler_type="linear",
        warmup_steps=2),
    run(4, per_device_train_batch_size=1, gradient_accumulation_steps=16, num_train_epochs=2,
        lr_scheduler_type="constant_with_warmup", warmup_steps=2),
    run(9, per_device_train_batch_size=2, gradient_accumulation_steps=1, num_train_epochs=1, lr_scheduler_type="constant",
        warmup_steps=3),
    run(9, per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1.5, lr_scheduler_type="cosine",
        warmup_steps=0.3),
    run(9, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=5, lr_scheduler_type="cosine",
        warmup_steps=1),
]

schedules = []
for name in ("constant", "constant_with_warmup", "linear", "cosine"):
    for warmup, total in ((0, 7), (3, 20), (0.1, 17), (0.5, 9), (7, 7), (9, 7), (0.0, 1)):
        steps = int(warmup) if warmup >= 1 else math.ceil(total * warmup)
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=steps, num_training_steps=total)
        factors = [scheduler.lr_lambdas[0](step) for step in range(total + 2)]
        schedules.append({"name": name, "warmup": warmup, "total": total, "factors": factors})

path = TINY.parent / "trainer.json"
golden = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "data": rows, "runs": runs,
          "schedules": schedules}
path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
print(f"{path}: {path.stat().st_size} bytes")
for entry in runs:
    print({key: value for key, value in entry.items() if key != "log"}, *entry["log"], sep="\n  ")
