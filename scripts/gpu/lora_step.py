"""A training step of LoRA in bf16 by torch and PEFT at a published model's shape, with random weights: what `fourbit bench model/step`
is set beside. Prints one line of JSON.

    python3 lora_step.py SHAPE TOKENS [--checkpointing]
"""
import json
import pathlib
import statistics
import sys
import time

import peft
import torch
import transformers

SHAPES = pathlib.Path(__file__).resolve().parent / "shapes"
RANK, STEPS = 16, 5


def main():
    shape, tokens, checkpointing = sys.argv[1], int(sys.argv[2]), "--checkpointing" in sys.argv[3:]
    config = json.loads((SHAPES / f"{shape}.json").read_text())
    config = transformers.AutoConfig.for_model(config.pop("model_type"), use_cache=False, **config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    ids = torch.randint(0, config.vocab_size, (1, tokens), device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    for _ in range(STEPS + 2):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        wait()
        seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[2:])
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(json.dumps({"device": name, "torch": torch.__version__, "tokens": tokens, "seconds": step, "tokens_per_second": tokens / step, "peak_bytes": peak, "loss": float(loss)}))


if __name__ == "__main__":
    main()
