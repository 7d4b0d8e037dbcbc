"""Make the golden files of adapters other than plain LoRA: DoRA, IA3, AdaLoRA and prompt tuning.

    scripts/python.sh                            # prints a Python with torch, transformers and peft
    PYTHON scripts/make_peft_golden.py [OUT]     # default: tests/golden/peft

On tests/golden/tiny/model, in f32 on one thread, with fixed seeds; for each KIND of dora and ia3:

KIND/            the adapter folder that the values below begin from
KIND.safetensors param/NAME and grad/NAME of one step without dropout, loss; of 20 steps of AdamW the losses, the norms of the
                 gradients and final/NAME
adalora/         the adapter folder that AdaLoRA's values begin from, and adalora-final/ as it is after 10 steps, ranks taken away
adalora.safetensors grad/NAME of one step and its loss with the orthogonality term; of 10 steps of AdamW the losses, and after each
                 E/STEP/NAME; logits of INPUT_IDS at the end
adalora-clipped  the same of 14 steps with other intervals and clipped gradients, without folders
prompt/          the folder of prompt tuning that its values begin from
prompt.safetensors grad/NAME and loss of one step; of 20 steps of AdamW the losses, the norms of the gradients and final/NAME; all: the
                 loss of a step that learns the first token of each row too; of the first values: logits of INPUT_IDS, and generated,
                 the 12 likeliest tokens behind them
prompt-FAMILY/   the same on families whose embedding has a factor, with the logits in prompt-families.safetensors
qwen2-KIND/      an adapter on tests/golden/families/qwen2, whose layers have biases
qwen2.safetensors the logits of INPUT_IDS with each, and with none
"""

import json
import os
import shutil
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
if os.environ.get("PYTHONHASHSEED") != "0":  # PEFT keeps target_modules in a set
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.argv])

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
GOLDEN = os.path.join(ROOT, "tests/golden")
OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(GOLDEN, "peft")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
INPUT_IDS = [3, 10, 17, 24, 31, 38, 45, 52, 59, 66]
SIZES = {"lora_A": (0, 0.125), "lora_B": (0, 0.05), "lora_E": (0, 0.1), "ia3_l": (1, 0.1), "prompt_encoder": (0, 0.5)}


def configs():
    lora = dict(r=8, lora_alpha=16, lora_dropout=0.0, bias="none", target_modules=LINEAR, task_type="CAUSAL_LM")
    scaled = dict(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    return {"dora": LoraConfig(**lora, use_dora=True), "ia3": IA3Config(**scaled, task_type="CAUSAL_LM")}


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wrapped(folder, config):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model = get_peft_model(base, config)
    trained = sorted((name, p) for name, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for i, (name, p) in enumerate(trained):
            noise = randn(2000 + i, *p.shape)
            if "magnitude" in name:
                p.mul_(1 + 0.05 * noise)
            else:
                mean, deviation = next(size for part, size in SIZES.items() if part in name)
                p.copy_(mean + deviation * noise)
    return model.eval(), trained


def save(model, folder):
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    config = json.load(open(path))
    config["base_model_name_or_path"] = "tiny"
    for field in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(field), list):
            config[field].sort()
    json.dump(config, open(path, "w"), indent=2, sort_keys=True)


def on_disk(name):
    if name == "prompt_encoder.default.embedding.weight":
        return "prompt_embeddings"
    return name.replace(".default", "").replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def batches():
    stored = load_file(os.path.join(GOLDEN, "tiny/batch.safetensors"))
    return [{name: stored[name][i] for name in ("input_ids", "attention_mask", "labels")} for i in range(4)]


def adalora(data):
    """PEFT's rank allocator is called after each step of the optimizer, with the number of the step from 0 on."""
    fields = dict(lora_alpha=16, lora_dropout=0.0, target_modules=LINEAR, task_type="CAUSAL_LM")
    cases = {
        "adalora": (dict(init_r=6, target_r=2, tinit=2, tfinal=2, deltaT=1, orth_reg_weight=0.5, total_step=10), None),
        "adalora-clipped": (dict(init_r=4, target_r=1, tinit=1, tfinal=4, deltaT=3, beta1=0.7, beta2=0.9, orth_reg_weight=0.1, total_step=14), 1.0),
    }
    for name, (schedule, clip) in cases.items():
        model, trained = wrapped(os.path.join(GOLDEN, "tiny/model"), AdaLoraConfig(**schedule, **fields))
        parameters, tensors, losses = [p for _, p in trained], {}, []
        if clip is None:
            save(model, os.path.join(OUT, name))
        else:
            tensors.update({f"param/{on_disk(n)}": p.detach().clone() for n, p in trained})
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
        for step in range(schedule["total_step"]):
            optimizer.zero_grad()
            loss = model(**data[step % 4]).loss
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            elif step == 0:
                tensors.update({f"grad/{on_disk(n)}": p.grad.clone() for n, p in trained})
            optimizer.step()
            model.base_model.update_and_allocate(step)
            losses.append(loss.item())
            tensors.update({f"E/{step}/{on_disk(n)}": p.detach().clone() for n, p in trained if "lora_E" in n})
        with torch.no_grad():
            tensors["logits"] = model(input_ids=torch.tensor([INPUT_IDS])).logits[0]
        tensors["loss"] = torch.tensor(losses)
        if clip is None:
            save(model, os.path.join(OUT, f"{name}-final"))
        save_file(dict(sorted(tensors.items())), os.path.join(OUT, f"{name}.safetensors"))


def learn(model, trained, data, tensors):
    """Twenty steps of AdamW, and the gradients of the first."""
    parameters = [p for _, p in trained]
    # transformers decays what is no bias and no norm; what an adapter trains is neither.
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 3, 20)
    losses, norms = [], []
    for step in range(20):
        optimizer.zero_grad()
        loss = model(**data[step % 4]).loss
        loss.backward()
        if step == 0:
            tensors.update({f"grad/{on_disk(n)}": p.grad.clone() for n, p in trained})
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0).item())
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    tensors.update({f"final/{on_disk(n)}": p.detach() for n, p in trained})
    tensors.update({"loss": torch.tensor(losses), "grad_norm": torch.tensor(norms)})


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([INPUT_IDS])).logits[0, -len(INPUT_IDS) :].clone()


def prompt(data):
    config = PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
    model, trained = wrapped(os.path.join(GOLDEN, "tiny/model"), config)
    save(model, os.path.join(OUT, "prompt"))
    tensors = {"logits": logits_of(model)}
    ids = torch.tensor([INPUT_IDS])
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False)
    tensors["generated"] = made[0, -12:].clone()
    every = torch.where(data[0]["attention_mask"] == 1, data[0]["input_ids"], -100)
    with torch.no_grad():
        tensors["all"] = model(**{**data[0], "labels": every}).loss
    learn(model, trained, data, tensors)
    save_file(dict(sorted(tensors.items())), os.path.join(OUT, "prompt.safetensors"))
    logits = {}
    for family in ("gemma", "granite"):
        model, _ = wrapped(os.path.join(GOLDEN, "families", family), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
        save(model, os.path.join(OUT, f"prompt-{family}"))
        logits[family] = logits_of(model)
    save_file(logits, os.path.join(OUT, "prompt-families.safetensors"))


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    data = batches()
    for kind, config in configs().items():
        model, trained = wrapped(os.path.join(GOLDEN, "tiny/model"), config)
        save(model, os.path.join(OUT, kind))
        tensors = {f"param/{on_disk(n)}": p.detach().clone() for n, p in trained}
        learn(model, trained, data, tensors)
        save_file(dict(sorted(tensors.items())), os.path.join(OUT, f"{kind}.safetensors"))
    adalora(data)
    prompt(data)
    logits = {}
    for kind, config in configs().items():
        model, _ = wrapped(os.path.join(GOLDEN, "families/qwen2"), config)
        save(model, os.path.join(OUT, f"qwen2-{kind}"))
        with torch.no_grad():
            logits[kind] = model(input_ids=torch.tensor([INPUT_IDS])).logits[0].clone()
            with model.disable_adapter():
                logits["none"] = model(input_ids=torch.tensor([INPUT_IDS])).logits[0].clone()
    save_file(logits, os.path.join(OUT, "qwen2.safetensors"))


main()
