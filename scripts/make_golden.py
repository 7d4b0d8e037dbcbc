#!/usr/bin/env python3
"""Writes tests/golden: what PyTorch, transformers, PEFT and bitsandbytes answer, for the tests to compare with.

    pip install -r scripts/requirements.txt
    python scripts/make_golden.py [tests/golden]

Deterministic on one kind of CPU: one thread, fixed seeds, no timestamps. All computing is fp32 on the CPU. The fixtures
in the repository were made with AVX2; with AVX-512 last bits of sums and of decoded values differ.

    blockwise4.safetensors   bitsandbytes 4-bit (nf4, fp4), plain and double-quantized
    blockwise8.safetensors   bitsandbytes' dynamic 8-bit map
    int8.safetensors         torch's affine and symmetric integers, fake-quantize with gradients
    tiny/model               a 2-layer Llama whose linear weights are what NF4 decodes to
    tiny/bnb-nf4-dq          the same in bitsandbytes' layout; orig.safetensors holds the weights before
    tiny/batch               input_ids, attention_mask, labels: 4 batches of 2 rows of 24
    tiny/{base,lora,rslora}  logits, loss, adapter values and their gradients
    tiny/lora_train, adapter_init, adapter_final   20 steps of AdamW
    golden.json              versions, losses, learning rates, gradient norms

Keys of blockwise4: "<case>/x", "<case>/<type>/b<block>/{codes,absmax,dequant}", ".../dq/{absmax_q,nested_absmax,offset,
dequant,absmax_dequant}". The keys "cuda_*" are no output of bitsandbytes: they hold this script's transcription of the
rule of its CUDA kernels, which round differently from its CPU kernels in the last partial block, at ties and near zero.
"""
import json
import os
import shutil
import sys

if os.environ.get("PYTHONHASHSEED") != "0":  # PEFT keeps target_modules in a set
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable] + sys.argv)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import bitsandbytes
import bitsandbytes.functional as F
import numpy as np
import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
OUT = sys.argv[1] if len(sys.argv) > 1 else "tests/golden"
f32 = np.float32
INDEX = {"versions": {m.__name__: m.__version__ for m in (torch, transformers, peft, bitsandbytes, np)}}


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def save(tensors, name, **kwargs):
    save_file({k: v.contiguous().clone() for k, v in sorted(tensors.items())}, f"{OUT}/{name}", **kwargs)


# ---------------------------------------------------------------- bitsandbytes, 4 and 8 bits
NF4_T = np.array(
    [-0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984,
     -0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668,
     0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784181118011], f32)
FP4_T = np.array([0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333], f32)
FP4_BY_RANK = np.array([0, 1, 6, 7, 4, 5, 2, 3], np.uint8)


def cuda_quant4(x, block, kind):
    """x * (1 / absmax) compared strictly with the thresholds; NaN gives 0."""
    x = x.reshape(-1).float().numpy()
    padded = np.zeros(-(-x.size // block) * block, f32)
    padded[: x.size] = x
    padded = padded.reshape(-1, block)
    absmax = np.abs(padded).max(1).astype(f32)
    with np.errstate(all="ignore"):
        s = padded * (f32(1) / absmax)[:, None]
    if kind == "nf4":
        codes = sum((s > t).astype(np.uint8) for t in NF4_T)
    else:
        codes = FP4_BY_RANK[sum((np.abs(s) > t).astype(np.uint8) for t in FP4_T)] + np.where(s < 0, 8, 0).astype(np.uint8)
    codes = codes.reshape(-1)[: x.size + x.size % 2]
    return torch.from_numpy((codes[0::2] << 4 | codes[1::2]).astype(np.uint8)), torch.from_numpy(absmax)


def cuda_code8(v, code):
    """A binary search from code 127, then the nearer neighbour."""
    pivot, up, low, step = 127, 255, 0, 64
    upper, lower = code[255], code[0]
    while step > 0:
        if v > code[pivot]:
            low, lower, pivot = pivot, code[pivot], pivot + step
        else:
            up, upper, pivot = pivot, code[pivot], pivot - step
        step >>= 1
    if v > code[pivot]:
        return up if v > (upper + code[pivot]) * f32(0.5) else pivot
    return low if v < (lower + code[pivot]) * f32(0.5) else pivot


def cuda_quant8(x, code, block):
    x, code = x.reshape(-1).float().numpy(), code.numpy()
    out, maxima = np.zeros(x.size, np.uint8), []
    for b in range(0, x.size, block):
        absmax = np.abs(x[b : b + block]).max()
        maxima.append(absmax)
        with np.errstate(all="ignore"):
            scaled = x[b : b + block] * (f32(1) / absmax)
        out[b : b + block] = [cuda_code8(v, code) for v in scaled]
    return torch.from_numpy(out), torch.tensor(np.array(maxima, f32))


def blockwise4_cases(nf4_middles):
    torch.manual_seed(11)
    heavy = torch.distributions.StudentT(2.0).sample((32, 128)) * 0.02
    heavy[3, 5], heavy[10, 64], heavy[31, 127] = 8.0, -12.5, 3.0
    zeros = randn(12, 6, 64)  # all-zero and constant blocks
    zeros[1], zeros[3], zeros[4], zeros[5] = 0, 0, 0.25, -0.25
    fp4 = torch.tensor(FP4_T)
    ties = torch.cat([nf4_middles, torch.tensor(NF4_T), F.get_4bit_type("nf4", "cpu"), fp4, -fp4,
                      torch.tensor([0.0, -0.0, 1e-9, -1e-9])])
    ties = torch.cat([ties, torch.zeros(128 - ties.numel())])
    ties[63], ties[127] = 1.0, -1.0  # absmax exactly 1 in both blocks
    spread = torch.rand(600, 1, generator=torch.Generator().manual_seed(20)).mul(0.2).add(0.01)
    return heavy, {
        "normal": (randn(10, 48, 128) * 0.05, (32, 64, 128, 256, 512, 1024, 4096)),
        "heavy": (heavy, (64, 256)),
        "zeros": (zeros, (64, 128)),
        "zero_tail": (torch.cat([randn(13, 64), torch.zeros(20)]), (64,)),
        "ragged": (randn(14, 1000) * 3, (64, 128, 256)),
        "odd": (randn(15, 333), (64, 4096)),
        "short": (randn(16, 7), (64,)),
        "ties": (ties, (64, 128)),
        "tiny": (randn(17, 4, 64) * 1e-30, (64,)),
        "subnormal": (randn(18, 2, 64) * 1e-39, (64,)),
        "nested": (randn(19, 600, 64) * spread, (64,)),  # 2.3 nested blocks
        "bf16": ((randn(21, 8, 64) * 0.05).bfloat16(), (64,)),
        "f16": ((randn(22, 8, 64) * 0.05).half(), (64,)),
    }


def blockwise():
    nf4, fp4, dynamic = F.get_4bit_type("nf4", "cpu"), F.get_4bit_type("fp4", "cpu"), F.create_dynamic_map()
    middles = (nf4[1:] + nf4[:-1]) / 2
    heavy, cases = blockwise4_cases(middles)
    T = {"map/nf4": nf4, "map/fp4": fp4, "map/dynamic8": dynamic, "map/nf4_midpoints_cpu": middles,
         "map/nf4_thresholds_cuda": torch.tensor(NF4_T), "map/fp4_thresholds_cuda": torch.tensor(FP4_T)}
    for case, (x, sizes) in cases.items():
        T[f"{case}/x"] = x
        for kind in ("nf4", "fp4"):
            for block in sizes:
                key = f"{case}/{kind}/b{block}"
                q, s = F.quantize_4bit(x, blocksize=block, quant_type=kind)
                # A 1-D tensor comes back as (1, n).
                T[f"{key}/codes"], T[f"{key}/absmax"] = q.reshape(-1), s.absmax
                T[f"{key}/dequant"] = F.dequantize_4bit(q, s).reshape(x.shape)
                T[f"{key}/cuda_codes"], _ = cuda_quant4(x, block, kind)
                if block in (64, 128):
                    q, d = F.quantize_4bit(x, blocksize=block, quant_type=kind, compress_statistics=True)
                    T[f"{key}/dq/absmax_q"], T[f"{key}/dq/nested_absmax"] = d.absmax, d.state2.absmax
                    T[f"{key}/dq/offset"] = d.offset.reshape(1)
                    T[f"{key}/dq/dequant"] = F.dequantize_4bit(q, d).reshape(x.shape)
                    T[f"{key}/dq/absmax_dequant"] = F.dequantize_blockwise(d.absmax, d.state2) + d.offset
                    T[f"{key}/dq/cuda_absmax_q"], nested = cuda_quant8(s.absmax - d.offset, dynamic, 256)
                    assert torch.equal(nested, d.state2.absmax)
    save(T, "blockwise4.safetensors")

    sweep = torch.logspace(-7, 0, 512) * torch.where(torch.arange(512) % 2 == 0, 1.0, -1.0)
    T = {"map/dynamic8": dynamic, "map/dynamic8_unsigned": F.create_dynamic_map(signed=False)}
    for case, x, block in (
        ("normal", randn(30, 1024), 256),
        ("ragged", randn(31, 300), 256),
        ("heavy", heavy.reshape(-1)[:1024], 64),
        ("zero", torch.cat([torch.zeros(64), randn(32, 64)]), 64),
        ("logspace", sweep, 512),
    ):
        q, s = F.quantize_blockwise(x, blocksize=block)
        key = f"{case}/b{block}"
        T.update({f"{case}/x": x, f"{key}/codes": q, f"{key}/absmax": s.absmax,
                  f"{key}/dequant": F.dequantize_blockwise(q, s), f"{key}/cuda_codes": cuda_quant8(x, dynamic, block)[0]})
    save(T, "blockwise8.safetensors")


# ---------------------------------------------------------------- torch's integers
def qparams(low, high, qmin, qmax, symmetric):
    """The rule of torch.ao's MinMaxObserver: the range is widened to hold 0."""
    eps = torch.finfo(torch.float32).eps
    low, high = torch.minimum(low, torch.zeros(())), torch.maximum(high, torch.zeros(()))
    if symmetric:
        scale = (torch.maximum(-low, high) / ((qmax - qmin) / 2)).clamp(min=eps)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = ((high - low) / (qmax - qmin)).clamp(min=eps)
    return scale, (qmin - torch.round(low / scale)).to(torch.int32).clamp(qmin, qmax)


def integers():
    x, up = randn(40, 12, 32) * 0.7 + 0.2, randn(41, 12, 32)
    x[0, :4], x[5] = torch.tensor([9.0, -9.0, 4.0, -4.0]), 0
    ties = torch.arange(-300, 301, dtype=torch.float32) * 0.25  # every half-integer at scale 0.5
    T = {"x": x, "upstream": up, "ties/x": ties,
         "ties/q_scale0.5_zp0": torch.quantize_per_tensor(ties, 0.5, 0, torch.qint8).int_repr(),
         "ties/fake_scale0.5_zp3": torch.fake_quantize_per_tensor_affine(ties, 0.5, 3, -128, 127)}
    for name, (qmin, qmax), dtype, symmetric in (
        ("affine_qint8", (-128, 127), torch.qint8, False),
        ("affine_quint8", (0, 255), torch.quint8, False),
        ("symmetric_qint8", (-128, 127), torch.qint8, True),
        ("symmetric_qint8_narrow", (-127, 127), torch.qint8, True),
    ):
        for per in ("tensor", "channel"):
            key = f"{name}/per_{per}"
            # 0.6 of the true range, so that some numbers are clamped
            low, high = (x.min(), x.max()) if per == "tensor" else (x.amin(1), x.amax(1))
            s, z = qparams(low * 0.6, high * 0.6, qmin, qmax, symmetric)
            xr = x.clone().requires_grad_()
            if per == "tensor":
                y = torch.fake_quantize_per_tensor_affine(xr, s.item(), int(z), qmin, qmax)
                q = torch.quantize_per_tensor(x, s.item(), int(z), dtype)
            else:
                y = torch.fake_quantize_per_channel_affine(xr, s, z, 0, qmin, qmax)
                q = torch.quantize_per_channel(x, s, z, 0, dtype)
            (y * up).sum().backward()
            T.update({f"{key}/scale": s.reshape(-1), f"{key}/zero_point": z.reshape(-1), f"{key}/fake": y.detach(),
                      f"{key}/grad_x": xr.grad})
            if qmin != -127:
                T[f"{key}/int_repr"], T[f"{key}/dequant"] = q.int_repr(), q.dequantize()
    save(T, "int8.safetensors")


# ---------------------------------------------------------------- a tiny Llama
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCHES = 4


def tidy(path):
    """Stable JSON without local paths."""
    config = json.load(open(path))
    for key in ("_name_or_path", "base_model_name_or_path"):
        if key in config:
            config[key] = "tiny-llama" if key.startswith("base") else ""
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    json.dump(config, open(path, "w"), indent=2, sort_keys=True)
    return config


def tiny_model():
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=176,
        vocab_size=256, max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, attn_implementation="eager", use_cache=False, dtype="float32")
    model = LlamaForCausalLM(config).eval()
    state = {}
    for i, (name, p) in enumerate(sorted(model.state_dict().items())):
        noise = randn(1000 + i, *p.shape)
        state[name] = 1 + 0.1 * noise if "norm" in name else noise * (0.6 if "embed" in name else 0.12)
    save(state, "tiny/orig.safetensors")
    stored = {}
    for name in list(state):
        stored[name] = state[name]
        if any(linear in name for linear in LINEAR):
            q, s = F.quantize_4bit(state[name], blocksize=64, quant_type="nf4", compress_statistics=True)
            stored[name], state[name] = q, F.dequantize_4bit(q, s)
            stored.update({f"{name}.{k}": v for k, v in s.as_dict(packed=True).items()})
    model.load_state_dict(state)
    model.save_pretrained(f"{OUT}/tiny/model")
    config_json = tidy(f"{OUT}/tiny/model/config.json")
    os.makedirs(f"{OUT}/tiny/bnb-nf4-dq")
    save(stored, "tiny/bnb-nf4-dq/model.safetensors", metadata={"format": "pt"})
    config_json["quantization_config"] = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_storage": "uint8",
        "_load_in_4bit": True, "_load_in_8bit": False, "llm_int8_threshold": 6.0, "llm_int8_skip_modules": None,
        "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False}
    json.dump(config_json, open(f"{OUT}/tiny/bnb-nf4-dq/config.json", "w"), indent=2, sort_keys=True)
    return config, state, model


def batches():
    ids = torch.randint(3, 256, (BATCHES, 2, 24), generator=torch.Generator().manual_seed(50))
    mask, labels = torch.ones_like(ids), ids.clone()
    for b in range(BATCHES):
        n = 24 - 7 - b  # row 1 is padded on the right
        ids[b, 1, n:], mask[b, 1, n:], labels[b, 1, n:] = 0, 0, -100
        labels[b, 0, :5], labels[b, 1, :3] = -100, -100  # prompt tokens carry no loss
    save({"input_ids": ids, "attention_mask": mask, "labels": labels}, "tiny/batch.safetensors")
    return [dict(input_ids=ids[i], attention_mask=mask[i], labels=labels[i]) for i in range(BATCHES)]


def with_lora(config, state, lora):
    torch.manual_seed(0)
    base = LlamaForCausalLM(config).eval()
    base.load_state_dict(state)
    model = get_peft_model(base, lora)
    with torch.no_grad():
        for i, (name, p) in enumerate(sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)):
            p.copy_(randn(2000 + i, *p.shape) * (0.125 if "lora_A" in name else 0.05))
    return model.eval()


def one_step(model, batch, name, hidden=False):
    out = model(**batch, output_hidden_states=hidden)
    out.loss.backward()
    T = {"loss": out.loss.detach().reshape(1), "logits": out.logits.detach()}
    trained = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    T.update({f"param/{n}": p.detach() for n, p in trained.items()})
    T.update({f"grad/{n}": p.grad for n, p in trained.items()})
    if hidden:
        T.update({f"hidden/{i}": h.detach() for i, h in enumerate(out.hidden_states)})
    save(T, f"tiny/{name}.safetensors")
    INDEX["tiny"][name] = {"loss": out.loss.item(), "trainable": sum(p.numel() for p in trained.values())}


def train(model, data):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 3, 20)
    losses, norms, rates = [], [], []
    for i in range(20):
        optimizer.zero_grad()
        loss = model(**data[i % BATCHES]).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 1.0).item())
        rates.append(schedule.get_last_lr()[0])  # the rate of this step: 0 at step 0
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    save({"loss": torch.tensor(losses), "grad_norm": torch.tensor(norms), "lr": torch.tensor(rates, dtype=torch.float64)},
         "tiny/lora_train.safetensors")
    INDEX["tiny"]["lora_train"] = {
        "loss": losses, "grad_norm": norms, "lr": rates, "batch_at_step": [i % BATCHES for i in range(20)],
        "optimizer": "AdamW betas .9/.999 eps 1e-8 wd .01, clip_grad_norm 1.0, cosine, 3 of 20 steps warm-up"}


def tiny():
    config, state, base = tiny_model()
    data = batches()
    with torch.no_grad():
        out = base(**data[0], output_hidden_states=True)
    T = {f"hidden/{i}": h for i, h in enumerate(out.hidden_states)}
    save({"logits": out.logits, "loss": out.loss.reshape(1), **T}, "tiny/base.safetensors")
    INDEX["tiny"] = {"base": {"loss": out.loss.item()}}

    base(**data[0]).loss.backward()
    full = ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.input_layernorm.weight", "model.norm.weight",
            "model.embed_tokens.weight")
    save({n: p.grad for n, p in base.named_parameters() if n in full}, "tiny/full_grads.safetensors")
    INDEX["tiny"]["full_grad_l2"] = {n: p.grad.norm().item() for n, p in sorted(base.named_parameters())}

    options = dict(r=8, lora_alpha=16, lora_dropout=0.0, bias="none", target_modules=list(LINEAR), task_type="CAUSAL_LM")
    model = with_lora(config, state, LoraConfig(**options))
    one_step(model, data[0], "lora", hidden=True)
    model.save_pretrained(f"{OUT}/tiny/adapter_init")
    tidy(f"{OUT}/tiny/adapter_init/adapter_config.json")
    train(model, data)
    model.save_pretrained(f"{OUT}/tiny/adapter_final")
    tidy(f"{OUT}/tiny/adapter_final/adapter_config.json")
    merged = model.merge_and_unload().state_dict()
    save({n: p for n, p in merged.items() if "layers.0." in n and "proj" in n}, "tiny/merged_layer0.safetensors")
    one_step(with_lora(config, state, LoraConfig(**options, use_rslora=True)), data[0], "rslora")


def main():
    for name in ("blockwise4.safetensors", "blockwise8.safetensors", "int8.safetensors", "golden.json", "tiny"):
        path = f"{OUT}/{name}"  # other fixtures in this folder have other scripts
        shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else os.path.exists(path) and os.remove(path)
    os.makedirs(f"{OUT}/tiny")
    blockwise()
    integers()
    tiny()
    for folder, _, files in os.walk(f"{OUT}/tiny"):
        for name in files:
            if name in ("README.md", "generation_config.json"):
                os.remove(os.path.join(folder, name))
    json.dump(INDEX, open(f"{OUT}/golden.json", "w"), indent=1, sort_keys=True)


main()
