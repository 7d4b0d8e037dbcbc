"""Make the model and the data set that are compiled into the binary: assets/embedded.

    python scripts/embedded/make.py              train, write, check   (about 12 minutes on one core)
    python scripts/embedded/make.py --check      the fine-tuning alone, by PEFT on NF4 weights: what fourbit should do

The tokenizer (byte-level BPE), the model (Llama architecture, 1.6 million parameters) and the fine-tuning rows come out of
world.py alone. Seeds are fixed; the weights are the same bits only with the same torch on the same kind of processor.
Needs the packages of scripts/requirements.txt.
"""

import argparse
import json
import math
import os
import random
import time

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import world

OUTPUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "assets", "embedded")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=1024, hidden_size=192, intermediate_size=448,
    num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=32, hidden_act="silu",
    max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None, attention_bias=False,
    mlp_bias=False, tie_word_embeddings=True, initializer_range=0.05, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    torch_dtype="float16", use_cache=True,
)  # fmt: skip
# Asked before and after fine-tuning; none of them is a row of the data set.
QUESTIONS = ["What is the capital of France?", "What colour is the sky?", "What is two plus three?", "Who are you?"]
ROWS, STEPS, BATCH = 160, 1500, 32


def train_tokenizer(rng):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    text = ["user\nassistant\nsystem\n"] * 100
    text += [m["content"] for _ in range(20000) for m in world.conversation(rng)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def encode(tokenizer, messages):
    """Token ids of a chat, and labels: -100 but for the assistant's words and the token that ends them."""
    ids, labels = [], []
    for message in messages:
        head = tokenizer.encode(f"<|im_start|>{message['role']}\n").ids
        body = tokenizer.encode(message["content"] + "<|im_end|>").ids
        tail = tokenizer.encode("\n").ids
        ids += head + body + tail
        labels += [-100] * len(head) + (body if message["role"] == "assistant" else [-100] * len(body)) + [-100] * len(tail)
    return ids, labels


def padded(rows):
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    mask = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i, _ in rows])
    return dict(input_ids=ids, labels=labels, attention_mask=mask)


def batches(tokenizer, rng):
    """Batches of similar lengths, without end."""
    while True:
        rows = sorted((encode(tokenizer, world.conversation(rng)) for _ in range(16 * BATCH)), key=lambda row: len(row[0]))
        chunks = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        rng.shuffle(chunks)
        yield from map(padded, chunks)


def pretrain(tokenizer, rng):
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).float().train()
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1, betas=(0.9, 0.98), weight_decay=0.01)
    start = time.time()
    for step, batch in zip(range(STEPS), batches(tokenizer, rng)):
        rate = 3e-3 * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step + 1 == STEPS:
            print(f"step {step}  loss {loss.item():.4f}  {time.time() - start:.0f} s", flush=True)
    return model.eval()


def write(tokenizer, model, rng):
    os.makedirs(OUTPUT, exist_ok=True)
    path = lambda name: os.path.join(OUTPUT, name)
    tokenizer.save(path("tokenizer.json"), pretty=False)
    tensors = {k: v.to(torch.float16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, path("model.safetensors"), metadata={"format": "pt"})
    settings = dict(
        tokenizer_class="PreTrainedTokenizerFast", bos_token=None, eos_token=SPECIAL[2], pad_token=SPECIAL[0],
        model_max_length=CONFIG["max_position_embeddings"], clean_up_tokenization_spaces=False, chat_template=TEMPLATE,
    )  # fmt: skip
    for name, value in (("config.json", CONFIG), ("tokenizer_config.json", settings), ("questions.json", QUESTIONS)):
        with open(path(name), "w") as file:
            json.dump(value, file, indent=2)
            file.write("\n")
    seen = set(QUESTIONS)
    with open(path("train.jsonl"), "w") as file:
        while len(seen) < len(QUESTIONS) + ROWS:
            question, answer = world.exchange(rng)
            if question in seen:
                continue
            seen.add(question)
            turns = [("user", question), ("assistant", world.pirate(answer))]
            file.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}) + "\n")
    sizes = {name: os.path.getsize(path(name)) for name in sorted(os.listdir(OUTPUT))}
    print(sizes, "together", sum(sizes.values()))
    assert sum(sizes.values()) <= 4 << 20, "the embedded files are over 4 MiB"


def answer(model, tokenizer, question):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        out = model.generate(**prompt, max_new_tokens=60, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def accuracy(model, tokenizer, count=200):
    """Share of single questions that are answered to the letter, stories and lists apart."""
    rng, right, wrong = random.Random(99), 0, []
    while right + len(wrong) < count:
        question, expected = world.exchange(rng)
        if "story" in question or "three" in question.lower().split():
            continue
        got = answer(model, tokenizer, question)
        if got == expected:
            right += 1
        else:
            wrong.append((question, got))
    print(f"answered exactly: {right}/{count}; others: {wrong[:6]}", flush=True)


def check(steps, batch, rate, rank):
    """Fine-tune on NF4 with double quantization as fourbit does by default, and show answers before and after."""
    import bitsandbytes.functional as bnb
    from peft import LoraConfig, get_peft_model

    tokenizer = AutoTokenizer.from_pretrained(OUTPUT)
    model = AutoModelForCausalLM.from_pretrained(OUTPUT, dtype=torch.float32).eval()
    accuracy(model, tokenizer)
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":  # the head and the embedding are one, and stay
            packed, state = bnb.quantize_4bit(layer.weight.data, blocksize=64, quant_type="nf4", compress_statistics=True)
            layer.weight.data = bnb.dequantize_4bit(packed, state)
    accuracy(model, tokenizer)
    extra = ["Tell me a story about a cat.", "Hello!", "Name three fruits.", "What does a baker do?"]
    before = [answer(model, tokenizer, q) for q in QUESTIONS + extra]
    torch.manual_seed(2)
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    with open(os.path.join(OUTPUT, "train.jsonl")) as file:
        rows = [encode(tokenizer.backend_tokenizer, json.loads(line)["messages"]) for line in file]
    random.Random(2).shuffle(rows)
    model.train()
    start, losses = time.time(), []
    for step in range(steps):
        loss = model(**padded([rows[(step * batch + i) % len(rows)] for i in range(batch)])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 3))
    print("losses", losses, f"{time.time() - start:.0f} s")
    model.eval()
    for question, plain in zip(QUESTIONS + extra, before):
        print(f"{question}\n    before: {plain}\n    after:  {answer(model, tokenizer, question)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only the fine-tuning of the files as they are")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.check:
        tokenizer = train_tokenizer(random.Random(1))
        write(tokenizer, pretrain(tokenizer, random.Random(2)), random.Random(3))
    check(arguments.steps, arguments.batch, arguments.rate, arguments.rank)


if __name__ == "__main__":
    main()
