"""The PyTorch row of kvark/inferena, eagerly: a peer of turns.py, which says what a peer prints.

    python inferena_torch.py FOLDER

SmolLM2-135M in f32, token ids 0 to 127, as models/SmolLM2-135M.md there defines them:

inference  a forward pass without gradients; logits of all 128 tokens
latency    the same of one token, without a cache
training   cross-entropy of each token's successor, with the gradients of every parameter and without an optimizer. The table there
           leaves the forward pass out of it; here it is a part, as its protocol has had it since.
"""

import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from transformers import AutoModelForCausalLM

TOKENS = 128


def main():
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    model.train()  # there is no dropout
    ids = torch.arange(TOKENS)[None]
    labels = torch.arange(1, TOKENS + 1)

    def forward(tokens):
        with torch.no_grad():
            return model(input_ids=ids[:, :tokens], use_cache=False).logits

    def training():
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0], labels)
        loss.backward()
        model.zero_grad()
        return loss.item()

    runs = {"inference": lambda: forward(TOKENS), "latency": lambda: forward(1), "training": training}

    def timed(run):
        wall, processor = time.perf_counter(), time.process_time()
        run()
        return [time.perf_counter() - wall, time.process_time() - processor]

    for run in runs.values():
        run()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads"
    print(json.dumps({"ready": f"{versions}, loss {training():.4f}"}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({name: [timed(run) for _ in range(3)] for name, run in runs.items()}), flush=True)


if __name__ == "__main__":
    main()
