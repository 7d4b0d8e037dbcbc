"""Make the golden files of full fine-tuning: the gradients of every weight, and twenty steps of AdamW.

    scripts/python.sh                            # prints a Python with torch and transformers
    PYTHON scripts/make_full_golden.py [OUT]     # default: tests/golden/full

On tests/golden/tiny/model (llama), families/qwen2 (biases) and families/gemma (tied head, factor of the embedding, norms about 1), in
f32 on one thread. llama is trained on the batches of tests/golden/tiny, the others on INPUT_IDS:

FAMILY.safetensors  loss, norm/NAME (length of the gradient) and grad/NAME (every 7th row, or all of a vector); of llama also loss and
                    grad_norm of 20 steps, and final/NAME (every 7th row); norms and biases do not decay
"""

import os
import shutil
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
GOLDEN = os.path.join(ROOT, "tests/golden")
OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(GOLDEN, "full")
# With a token that comes again.
INPUT_IDS = [3, 10, 17, 24, 31, 10, 45, 52, 59, 10]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(os.path.join(GOLDEN, folder), dtype=torch.float32, attn_implementation="eager").eval()


def rows(tensor):
    return tensor.detach()[::7].clone() if tensor.dim() == 2 else tensor.detach().clone()


def gradients(model, batch):
    loss = model(**batch).loss
    loss.backward()
    named = {n: p.grad for n, p in model.named_parameters()}
    tensors = {f"grad/{n}": rows(grad) for n, grad in named.items()}
    tensors.update({f"norm/{n}": grad.norm().reshape(1) for n, grad in named.items()})
    return {**tensors, "loss": loss.detach().reshape(1)}


def batches():
    stored = load_file(os.path.join(GOLDEN, "tiny/batch.safetensors"))
    return [{name: stored[name][i] for name in ("input_ids", "attention_mask", "labels")} for i in range(4)]


def train(model, data):
    named = list(model.named_parameters())
    vectors = [p for n, p in named if p.dim() == 1]
    groups = [
        {"params": [p for n, p in named if p.dim() == 2], "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    schedule = get_cosine_schedule_with_warmup(optimizer, 3, 20)
    losses, norms = [], []
    for step in range(20):
        optimizer.zero_grad()
        loss = model(**data[step % 4]).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0).item())
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    final = {f"final/{n}": rows(p) for n, p in named}
    return {**final, "loss": torch.tensor(losses), "grad_norm": torch.tensor(norms)}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    data = batches()
    save_file({**gradients(load("tiny/model"), data[0]), **train(load("tiny/model"), data)}, os.path.join(OUT, "llama.safetensors"))
    ids = torch.tensor([INPUT_IDS])
    for family in ("qwen2", "gemma"):
        tensors = gradients(load(f"families/{family}"), dict(input_ids=ids, labels=ids))
        save_file(tensors, os.path.join(OUT, f"{family}.safetensors"))


main()
