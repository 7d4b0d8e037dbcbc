"""A QLoRA step by transformers, PEFT and bitsandbytes: a peer of turns.py, which says what a peer prints.

    python qlora_step.py FOLDER float32|bfloat16 ROUNDS

float32 computes as fourbit does; bfloat16 is what the folder asks for, and most people run. Forward, loss, backward, clipping, AdamW.
"""

import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "scripts"))
from verify import load_4bit  # sets what keeps transformers offline

import bitsandbytes
import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

TOKENS = 256


def main():
    folder, dtype, rounds = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    full = dtype == torch.float32
    model = load_4bit(folder) if full else AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu")
    config = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    model.train()
    model.config.use_cache = False
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    # As `fourbit bench` has them.
    ids = torch.tensor([[i * 7919 % model.config.vocab_size for i in range(TOKENS)]])

    def step():
        wall, processor = time.perf_counter(), time.process_time()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return [time.perf_counter() - wall, time.process_time() - processor]

    step()
    step()
    packages = ", ".join(f"{p.__name__} {p.__version__}" for p in (torch, transformers, peft, bitsandbytes))
    print(json.dumps({"ready": f"{packages}, {torch.get_num_threads()} threads"}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"step": [step() for _ in range(rounds)]}), flush=True)


if __name__ == "__main__":
    main()
