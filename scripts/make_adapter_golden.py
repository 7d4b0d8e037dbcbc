#!/usr/bin/env python3
"""Writes tests/golden/adapters: adapters in the forms that PEFT reads, and the logits that PEFT then gives.

    pip install -r scripts/requirements.txt
    PYTHONHASHSEED=0 python scripts/make_adapter_golden.py [tests/golden]

The base is tests/golden/tiny/model. PEFT sorts the keys of rank_pattern when it saves, and the first that fits decides. Each folder holds one adapter as PEFT saves it; logits.safetensors holds the last row of
logits of each, and index.json the versions, the tokens, and what training of those with sizes of their own gives. Where `edit` is given, fields of adapter_config.json are changed
afterwards. The logits are those of the folder read back (PeftModel.from_pretrained), in fp32 on the CPU.
"""
import json
import os
import shutil
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

torch.set_num_threads(1)
ROOT = sys.argv[1] if len(sys.argv) > 1 else "tests/golden"
OUT, BASE = f"{ROOT}/adapters", f"{ROOT}/tiny/model"
IDS = torch.tensor([[(7 * i * i + 3 * i + 1) % 96 for i in range(24)]])
Q0, UP1 = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"

CASES = {
    "pissa": dict(target_modules=["q_proj", "down_proj"], init_lora_weights="pissa"),
    "pissa-sizes": dict(target_modules=["v_proj", "up_proj"], init_lora_weights="pissa", rank_pattern={"v_proj": 3},
                        alpha_pattern={"layers.1.mlp.up_proj": 5}),
    "pissa-rslora": dict(target_modules=["o_proj"], init_lora_weights="pissa", use_rslora=True),
    "olora": dict(target_modules=["q_proj", "down_proj"], init_lora_weights="olora"),
    "olora-rslora": dict(target_modules=["k_proj", "gate_proj"], init_lora_weights="OLoRA", use_rslora=True),
    "gaussian": dict(target_modules=["q_proj"], init_lora_weights="gaussian"),
    "orthogonal": dict(target_modules=["k_proj"], init_lora_weights="orthogonal"),
    "full-names": dict(target_modules=[Q0, UP1]),
    "full-name-beside-layers": dict(target_modules=[Q0, "up_proj"], layers_to_transform=[1]),
    "regex": dict(target_modules=r".*\.(q|v)_proj"),
    "regex-lookahead": dict(target_modules=r"(?!.*\.0\.).*self_attn\.[^kq]_proj"),
    "layers": dict(target_modules=["q_proj"], layers_to_transform=[1]),
    "layers-pattern": dict(target_modules=["q_proj", "mlp.down_proj"], layers_to_transform=0, layers_pattern=["h", "layers"]),
    "exclude": dict(target_modules="all-linear", exclude_modules=["layers.0.mlp.up_proj", "q_proj", "gate_proj", "down_proj"]),
    "exclude-regex": dict(target_modules=["q_proj", "k_proj"], exclude_modules=r".*\.1\..*"),
    "sizes": dict(target_modules=["q_proj", "v_proj", "down_proj"], rank_pattern={"0.self_attn.q_proj": 1, "q_proj": 3},
                  alpha_pattern={r"v_pro.": 2, "model.layers.1.mlp.down_proj": 7.5}),
    "sizes-rslora": dict(target_modules=["v_proj"], rank_pattern={r"1\.self_attn\.v_proj": 4}, use_rslora=True),
}


def base():
    return transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


shutil.rmtree(OUT, ignore_errors=True)
os.makedirs(OUT)
logits = {}
for seed, (name, fields) in enumerate(CASES.items()):
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 2, "lora_alpha": 3, "init_lora_weights": True, "task_type": "CAUSAL_LM", **fields})
    model = get_peft_model(base(), config)
    with torch.no_grad():
        for tensor_name, p in model.named_parameters():
            if "lora_" in tensor_name:
                p += torch.randn(p.shape) * 0.2 * max(p.abs().mean().item(), 0.1)
    model.save_pretrained(f"{OUT}/{name}")
    for extra in ["README.md"]:
        if os.path.exists(f"{OUT}/{name}/{extra}"):
            os.remove(f"{OUT}/{name}/{extra}")
    path = f"{OUT}/{name}/adapter_config.json"
    with open(path) as f:
        saved = json.load(f)
    saved["base_model_name_or_path"] = None
    with open(path, "w") as f:
        json.dump(saved, f, indent=1)
    with torch.no_grad():
        read = PeftModel.from_pretrained(base(), f"{OUT}/{name}").eval()
        logits[name] = read(IDS).logits[0, -1].contiguous()


def trained(name):
    """Loss and norm of the gradient of four steps of AdamW on the tokens, from the adapter as it was saved."""
    model = PeftModel.from_pretrained(base(), f"{OUT}/{name}", is_trainable=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    losses, norms = [], []
    for _ in range(4):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0).item())
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return {"loss": losses, "grad_norm": norms}


with torch.no_grad():
    logits["none"] = base().eval()(IDS).logits[0, -1].contiguous()
save_file(logits, f"{OUT}/logits.safetensors")
versions = {m.__name__: m.__version__ for m in (torch, transformers, peft)}
with open(f"{OUT}/index.json", "w") as f:
    training = {name: trained(name) for name in ["sizes", "sizes-rslora"]}
    json.dump({"versions": versions, "input_ids": IDS[0].tolist(), "training": training}, f, indent=1)
