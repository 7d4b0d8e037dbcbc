#!/usr/bin/env python3
"""Writes tests/golden/checkpoints: a tiny Llama as other tools store it, with the logits that their numbers give.

    pip install -r scripts/requirements.txt
    pip install --no-deps gptqmodel==7.7.0 autoawq==0.2.9 optimum==2.3.0 aqlm==1.1.7
    pip install compressed-tensors==0.20.0 hqq==0.2.8.post1 logbar tokenicer device-smi pypcre threadpoolctl datasets defuser
    python scripts/make_checkpoint_golden.py [tests/golden/checkpoints]

Each folder is packed by the package itself, and its weights are decoded by the package itself with the scales widened to
f32, on the CPU; transformers then computes the logits in f32. None of this needs CUDA:

    gptq-*    gptqmodel: TorchLinear.pack_original and dequantize_weight; *-act has a shuffled g_idx
    awq       autoawq: WQLinear_GEMM.from_linear and dequantize_gemm (its kernels need CUDA, these two do not)
    hqq       hqq: HQQLinear, one width per layer (8, 4, 3 and 2 bits)
    llm-int8  bitsandbytes: int8_vectorwise_quant, saved by transformers. Its products round the activations too: "rounded"
              in logits.safetensors is of that formula in f32, which each layer of bitsandbytes (in halves) is checked
              against; "logits" is of the weights alone
    aqlm      aqlm: pack_int_data and _dequantize_weight, code books of 2x8
    ct-*      compressed-tensors: PackedQuantizationCompressor and IntQuantizationCompressor

`report` says how far transformers is from those logits when it loads the folder itself, or why it does not load it.
"""
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NUMBA_NUM_THREADS"] = "1"  # threads of aqlm's kernel add to one vector at once

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/checkpoints")
CONFIG = LlamaConfig(vocab_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=1,
                     eos_token_id=2, pad_token_id=0, dtype="float16")
IDS = torch.tensor([[1, 17, 22, 5, 31, 8, 30, 2, 0, 9, 13, 12]])
INDEX = {"input_ids": IDS[0].tolist(), "versions": {}, "report": {}}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def base():
    """The model before: f16 numbers, so that every package starts from the same."""
    model = LlamaForCausalLM(CONFIG).float()
    for i, (name, p) in enumerate(model.named_parameters()):
        spread = 0.25 if p.ndim == 2 else 0.1
        values = spread * torch.randn(p.shape, generator=generator(i)) + (0.0 if p.ndim == 2 else 1.0)
        p.data = values.half().float()
    return model.eval()


def linears(model):
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith("model.layers."):
            yield name, module


def finish(folder, tensors, quantization, decoded, rounds_inputs=False):
    """Writes the folder: the packed parts, what was not quantized in f16, and the logits of the decoded weights."""
    model = base()
    parts = dict(tensors)
    for name, p in model.named_parameters():
        module = name.rsplit(".", 1)[0]
        if module in decoded:
            weight = decoded[module].float()
            assert weight.shape == p.shape and (weight - p).norm() < 0.6 * p.norm(), (folder, name)
            p.data = weight
        else:
            parts[name] = p.detach().half()
    with torch.no_grad():
        logits = model(IDS).logits[0]
    path = OUT / folder
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    save_file({k: v.detach().contiguous().clone() for k, v in sorted(parts.items())}, path / "model.safetensors",
              metadata={"format": "pt"})
    config = CONFIG.to_diff_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": quantization}
    (path / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True, default=str) + "\n")
    answers = {"logits": logits.contiguous()}
    report(folder, logits)
    if rounds_inputs:
        for _, linear in linears(model):
            linear.register_forward_pre_hook(lambda _, args: (rounded(args[0]),))
        with torch.no_grad():
            answers["rounded"] = model(IDS).logits[0].contiguous()
        check_rounding(path, decoded)
    save_file(answers, path / "logits.safetensors")


def rounded(x, threshold=6.0):
    """What LLM.int8() makes of a layer's input: 8 bits per row, but for the columns that hold an outlier."""
    x = x.float()
    outliers = x.abs() >= threshold
    columns = outliers.flatten(0, -2).any(0)
    absmax = x.masked_fill(outliers, 0).abs().amax(-1, keepdim=True)
    return torch.where(columns, x, torch.round(x * (127 / absmax)) * absmax / 127)


def check_rounding(path, decoded):
    model = AutoModelForCausalLM.from_pretrained(path, device_map="cpu").eval()

    def compare(module, args, y, weight):
        want = rounded(args[0].half()) @ weight.T
        assert (y.float() - want).abs().max() < 2e-3 * want.abs().max()

    for name, module in model.named_modules():
        if name in decoded:
            module.register_forward_hook(lambda m, a, y, w=decoded[name].float(): compare(m, a, y, w))
    with torch.no_grad():
        model(IDS)


def report(folder, logits):
    try:
        model = AutoModelForCausalLM.from_pretrained(OUT / folder, dtype=torch.float32, device_map="cpu").eval()
        with torch.no_grad():
            got = model(IDS).logits[0].float()
        distance = float((got - logits).abs().max() / logits.abs().max())
        loads = "loads it" if distance < 0.1 else "opens it but does not take its weights"
        text = f"transformers {loads}; logits differ by {distance:.1e} of the largest"
    except Exception as error:
        text = f"transformers does not load it here: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
    print(f"{folder}: {text}", flush=True)
    INDEX["report"][folder] = text


def ranges(weight, groups, bits, sym):
    """Round-to-nearest scales and zero points, [out, groups]; groups: [in], the group of each column."""
    count = int(groups.max()) + 1
    top = 2**bits - 1
    scales, zeros = [], []
    for g in range(count):
        block = weight[:, groups == g]
        low, high = block.amin(1).clamp(max=0), block.amax(1).clamp(min=0)
        if sym:
            scales.append(torch.maximum(-low, high) * 2 / top)
            zeros.append(torch.full_like(low, 2 ** (bits - 1)))
        else:
            scales.append((high - low) / top)
            zeros.append(torch.round(-low / scales[-1]).clamp(0, top))
    return torch.stack(scales, 1).half().float(), torch.stack(zeros, 1)


# ---------------------------------------------------------------- GPTQ
def gptq(folder, bits, group_size, sym, desc_act, checkpoint_format):
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    tensors, decoded = {}, {}
    for i, (name, linear) in enumerate(linears(base())):
        size = linear.in_features if group_size == -1 else group_size
        groups = torch.arange(linear.in_features) // size
        if desc_act:
            groups = groups[torch.randperm(linear.in_features, generator=generator(100 + i))]
        scales, zeros = ranges(linear.weight.data, groups, bits, sym)
        layer = TorchLinear(bits=bits, group_size=group_size, sym=sym, desc_act=desc_act, bias=False,
                            in_features=linear.in_features, out_features=linear.out_features)
        linear.bias = None
        layer.pack_original(linear, scales, zeros, groups.to(torch.int32))
        stored = layer.scales
        layer.scales = stored.float()
        decoded[name] = layer.dequantize_weight().T.clone()
        if checkpoint_format == "gptq":
            convert_gptq_v2_to_v1_format_module(layer, SimpleNamespace(bits=bits, pack_dtype=torch.int32))
        parts = {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": stored, "g_idx": layer.g_idx}
        tensors |= {f"{name}.{part}": value for part, value in parts.items()}
    quantization = {"bits": bits, "checkpoint_format": checkpoint_format, "desc_act": desc_act, "group_size": group_size,
                    "lm_head": False, "quant_method": "gptq", "sym": sym, "true_sequential": True}
    finish(folder, tensors, quantization, decoded)


# ---------------------------------------------------------------- AWQ
def awq(folder):
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    tensors, decoded = {}, {}
    for name, linear in linears(base()):
        groups = torch.arange(linear.in_features) // 32
        scales, zeros = ranges(linear.weight.data, groups, 4, False)
        layer = WQLinear_GEMM.from_linear(linear, 4, 32, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
        decoded[name] = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, 32).T
        tensors |= {f"{name}.{part}": getattr(layer, part) for part in ("qweight", "qzeros", "scales")}
    quantization = {"bits": 4, "group_size": 32, "modules_to_not_convert": None, "quant_method": "awq",
                    "version": "gemm", "zero_point": True}
    finish(folder, tensors, quantization, decoded)


# ---------------------------------------------------------------- HQQ
def hqq(folder):
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

    widths = {"q_proj": 8, "k_proj": 4, "v_proj": 3, "o_proj": 2, "gate_proj": 4, "up_proj": 4, "down_proj": 3}
    tensors, decoded, tags = {}, {}, {}
    for name, linear in linears(base()):
        config = BaseQuantizeConfig(nbits=widths[name.rsplit(".", 1)[1]], group_size=32, axis=1)
        layer = HQQLinear(linear.half(), config, del_orig=False, compute_dtype=torch.float16, device="cpu")
        tensors |= {f"{name}.{k}": torch.as_tensor(v) for k, v in layer.state_dict().items()}
        wide = dict(layer.meta, scale=layer.meta["scale"].float(), zero=layer.meta["zero"].float(),
                    compute_dtype=torch.float32)
        decoded[name] = Quantizer.dequantize(layer.W_q, wide)
        tags[name.split(".", 3)[3]] = {"weight_quant_params": {
            k: config["weight_quant_params"][k] for k in ("nbits", "group_size", "axis")}}
    quantization = {"quant_config": tags, "quant_method": "hqq", "skip_modules": ["lm_head"]}
    finish(folder, tensors, quantization, decoded)


# ---------------------------------------------------------------- LLM.int8
def llm_int8(folder):
    from bitsandbytes.functional import int8_vectorwise_dequant

    dense, saved = OUT / "dense", OUT / "saved"
    base().half().save_pretrained(dense)
    config = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=config, dtype=torch.float16, device_map="cpu")
    model.save_pretrained(saved)
    tensors = load_file(saved / "model.safetensors")
    quantization = json.loads((saved / "config.json").read_text())["quantization_config"]
    decoded = {k[: -len(".SCB")]: int8_vectorwise_dequant(tensors[k[: -len("SCB")] + "weight"], v)
               for k, v in tensors.items() if k.endswith(".SCB")}
    parts = {k: v for k, v in tensors.items() if k.rsplit(".", 1)[0] in decoded}
    shutil.rmtree(dense), shutil.rmtree(saved)
    finish(folder, parts, quantization, decoded, rounds_inputs=True)


# ---------------------------------------------------------------- AQLM
def aqlm(folder):
    from aqlm.utils import _dequantize_weight, pack_int_data, unpack_int_data

    tensors, decoded = {}, {}
    for i, (name, linear) in enumerate(linears(base())):
        w = linear.weight.data
        scales = w.norm(dim=1).div(w.shape[1] ** 0.5).half()
        vectors = (w / scales.float()[:, None]).reshape(-1, 8)
        # One step of residual vector quantization: vectors of the weight as books, the nearest one chosen.
        codes, books, rest = [], [], vectors
        for book in range(2):
            pick = torch.randint(len(vectors), (256,), generator=generator(300 + 2 * i + book))
            books.append((vectors if book == 0 else rest)[pick].half())
            codes.append(torch.cdist(rest, books[-1].float()).argmin(1))
            rest = rest - books[-1].float()[codes[-1]]
        codes = pack_int_data(torch.stack(codes, 1).reshape(w.shape[0], -1, 2), 8)
        parts = {"codes": codes, "codebooks": torch.stack(books)[:, :, None], "scales": scales.reshape(-1, 1, 1, 1)}
        decoded[name] = _dequantize_weight(unpack_int_data(codes, 8), parts["codebooks"].float(), parts["scales"].float())
        tensors |= {f"{name}.{part}": value for part, value in parts.items()}
    quantization = {"in_group_size": 8, "linear_weights_not_to_quantize": ["lm_head", "lm_head.weight"],
                    "nbits_per_codebook": 8, "num_codebooks": 2, "out_group_size": 1, "quant_method": "aqlm"}
    finish(folder, tensors, quantization, decoded)


# ---------------------------------------------------------------- compressed-tensors
def compressed_tensors(folder, bits, strategy, symmetric, layout, actorder=None):
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(num_bits=bits, type="int", strategy=strategy, symmetric=symmetric,
                            group_size=32 if strategy == "group" else None)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(layout)
    tensors, decoded = {}, {}
    for i, (name, linear) in enumerate(linears(base())):
        groups = torch.arange(linear.in_features) // (32 if strategy == "group" else linear.in_features)
        state = {}
        if actorder:
            groups = groups[torch.randperm(linear.in_features, generator=generator(200 + i))]
            state["weight_g_idx"] = groups.to(torch.int32)
        scales, zeros = ranges(linear.weight.data, groups, bits, symmetric)
        zeros = (zeros - 2 ** (bits - 1)).to(torch.int8)
        if actorder:
            # The package has dropped actorder "group" but files have it: made by the formula, packed by the package.
            from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
            wide_s, wide_z = scales[:, groups], zeros[:, groups].float()
            codes = torch.clamp(torch.round(linear.weight.data / wide_s) + wide_z, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            state |= {"weight_packed": pack_to_int32(codes.to(torch.int8), bits),
                      "weight_shape": torch.tensor(linear.weight.shape), "weight_scale": scales.half()}
            if not symmetric:
                state["weight_zero_point"] = pack_to_int32(zeros, bits, packed_dim=0)
            decoded[name] = (codes - wide_z) * wide_s
        else:
            state |= {"weight": linear.weight.data, "weight_scale": scales, "weight_zero_point": zeros}
            state = compressor.compress(state, scheme)
            decoded[name] = compressor.decompress(dict(state), scheme)["weight"].clone()
            state["weight_scale"] = state["weight_scale"].half()
        tensors |= {f"{name}.{k}": v for k, v in state.items()}
    group = json.loads(scheme.model_dump_json())
    group["weights"]["actorder"], group["format"] = actorder, layout
    quantization = {"config_groups": {"group_0": group}, "format": layout,
                    "global_compression_ratio": None, "ignore": ["lm_head"], "kv_cache_scheme": None,
                    "quant_method": "compressed-tensors", "quantization_status": "compressed"}
    finish(folder, tensors, quantization, decoded)


if __name__ == "__main__":
    import importlib.metadata as metadata

    packages = ["torch", "transformers", "gptqmodel", "autoawq", "hqq", "aqlm", "bitsandbytes", "compressed-tensors", "numpy"]
    INDEX["versions"] = {p: metadata.version(p) for p in packages}
    gptq("gptq-4-sym", 4, 32, True, False, "gptq")
    gptq("gptq-4-act", 4, 64, False, True, "gptq")
    gptq("gptq-3-act", 3, 32, False, True, "gptq")
    gptq("gptq-2-v2", 2, 32, False, False, "gptq_v2")
    gptq("gptq-8-channel", 8, -1, True, False, "gptq")
    awq("awq")
    hqq("hqq")
    llm_int8("llm-int8")
    aqlm("aqlm")
    compressed_tensors("ct-int4", 4, "group", True, "pack-quantized")
    compressed_tensors("ct-int4-act", 4, "group", False, "pack-quantized", actorder="group")
    compressed_tensors("ct-int8", 8, "channel", True, "int-quantized")
    (OUT / "golden.json").write_text(json.dumps(INDEX, indent=1, sort_keys=True) + "\n")
