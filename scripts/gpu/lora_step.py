"""A training step of LoRA in bf16 by torch and PEFT at a published model's shape, with random weights: what `fourbit bench model/step`
is set beside. Prints one line of JSON.

    python3 lora_step.py SHAPE [TOKENS]
"""
import json
import statistics
import sys
import time

import peft
import torch
import transformers

LLAMA = {
    "smollm2-135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True),
    "llama-3.2-1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True),
    "llama-2-7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, vocab_size=32000),
}
RANK, STEPS = 16, 5


def main():
    shape, tokens = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 512
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA[shape], use_cache=False))
    torch.set_default_dtype(torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    if shape == "llama-2-7b":
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    ids = torch.randint(0, LLAMA[shape]["vocab_size"], (1, tokens), device=device)
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
