"""Is every field of a model's files read as the program that wrote it means it, or refused? Makes `docs/compatibility.md`.

    python scripts/verify_meaning.py [--fourbit target/release/fourbit] [--only KIND] [--fields PATTERN] [--output docs/compatibility.md]

Each optional field of a kind of file is set to three values, one at a time, in a tiny model with random weights, and the logits
after a short text are compared with the other program's: transformers for config.json, PEFT for adapter_config.json, llama.cpp (as
the package `xllamacpp` has it) for GGUF metadata. They must be equal, or fourbit must refuse the file; a field that fourbit passes
over in silence although it changes the other program's logits ends the script with status 1.

The output is written after each field. What it held of other kinds stays, and of other fields where `--fields` asks for some: rows
made beside another version go.

A kind of file is a class below with a name, a version, `cases()` (field, value, what to write), `write()`, which gives fourbit's
options, and `logits()` of the other program for these; `KINDS` lists them.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="critical", TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file
from safetensors.torch import save_file

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
VOCAB, POSITIONS = 160, 64
IDS = np.random.default_rng(1).integers(0, VOCAB, 40).tolist()
BOUND = 1e-4
MISSING = object()


class Refused(Exception):
    """By either program, with its words."""


def ours(binary, options, work):
    ids, out = os.path.join(work, "ids.json"), os.path.join(work, "logits.safetensors")
    with open(ids, "w") as file:
        json.dump(IDS, file)
    words = ["evaluate", *options, "--input-ids", ids, "--logits", out, "--quantization", "none"]
    done = subprocess.run([binary, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Refused(done.stderr.strip().splitlines()[-1])
    return next(iter(load_file(out).values()))[-1]


class Folder:
    """config.json of one family."""

    ROPE = [dict(rope_type="linear", factor=2.0, rope_theta=500.0), dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32, rope_theta=100.0), dict(rope_type="yarn", factor=2.0, rope_theta=10000.0, original_max_position_embeddings=32)]
    LONGROPE = dict(rope_type="longrope", rope_theta=100.0, short_factor=[1.0, 1.5, 2.0, 2.5], long_factor=[2.0, 4.0, 6.0, 8.0])
    # What is set beside a rotary embedding in `rope_scaling`: texts have 40 tokens.
    BESIDE = [
        (dict(rope_type="dynamic", factor=4.0), dict(max_position_embeddings=24)),
        (dict(rope_type="dynamic", factor=4.0), dict(max_position_embeddings=48)),
        (dict(type="yarn", factor=4.0, beta_fast=4.0, beta_slow=0.5, attention_factor=1.3), dict(original_max_position_embeddings=16)),
        (dict(rope_type="yarn", factor=4.0, mscale=0.7, mscale_all_dim=1.3, truncate=False), dict(original_max_position_embeddings=2048)),
        (LONGROPE, dict(original_max_position_embeddings=24)),
        (LONGROPE, dict(original_max_position_embeddings=40)),
        (dict(**LONGROPE, factor=8.0), dict(original_max_position_embeddings=39)),
        (dict(**LONGROPE, attention_factor=1.3), {}),
    ]
    VALUES = {
        "attention_dropout": [0.0, 0.1, 0],
        "attention_multiplier": [0.1, 0.5, 1],
        "attn_logit_softcapping": [None, 2.0, 50.0],
        "dtype": ["float32", "bfloat16", "float16"],
        "embedding_multiplier": [0.5, 12.0, 1],
        "final_logit_softcapping": [None, 2.0, 30.0],
        "head_dim": [8, 16, None],
        "hidden_act": ["silu", "gelu", "swish"],
        "hidden_activation": ["gelu_pytorch_tanh", "silu", "gelu"],
        "hidden_size": [32, 64, 96],
        "intermediate_size": [48, 64, 80],
        "layer_types": [["full_attention", "sliding_attention"], ["full_attention"] * 2, ["sliding_attention"] * 2],
        "logits_scaling": [2.0, 0.5, 8],
        "max_position_embeddings": [64, 128, 48],
        "max_window_layers": [0, 1, 2],
        "no_rope_layer_interval": [1, 2, 4],
        "no_rope_layers": [[1, 0], [0, 1], None],
        "num_attention_heads": [4, 8, 2],
        "num_hidden_layers": [1, 2, 3],
        "num_key_value_heads": [1, 4, None],
        "original_max_position_embeddings": [16, 32, 64],
        "partial_rotary_factor": [0.5, 1.0, 0.25],
        "pretraining_tp": [1, 2, None],
        "query_pre_attn_scalar": [8, 16, 256],
        "residual_multiplier": [0.22, 1.0, 2],
        "rms_norm_eps": [1e-5, 1e-2, 0.5],
        "rope_local_base_freq": [100.0, 10000.0, 7],
        "sliding_window_pattern": [1, 2, 6],
        "rope_parameters": [*ROPE, dict(**LONGROPE, original_max_position_embeddings=32)],
        "rope_scaling": [*ROPE[:2], dict(type="dynamic", factor=2.0)],
        "rope_theta": [100.0, 500000.0, 1000],
        "sliding_window": [8, 16, None],
        "torch_dtype": ["float32", "bfloat16", None],
        "vocab_size": [160, 192, 256],
    }
    # Names of older files, and of no class, that models carry.
    OTHERS = ["attention_bias", "is_causal", "layer_types", "mlp_bias", "original_max_position_embeddings", "partial_rotary_factor", "pretraining_tp", "rope_scaling", "rope_theta", "sliding_window", "torch_dtype", "use_sliding_window"]
    # What a model is made of, and where it came from: another value is another file, not another meaning.
    LEFT_OUT = ["architectures", "model_type", "transformers_version", "name_or_path", "_name_or_path"]
    BY_TYPE = {"bool": [True, False, None], "int": [1, 2, 3], "float": [0.0, 0.5, 1.0], "str": ["a", "b", "c"]}

    def __init__(self, family, config, others=(), **base):
        self.name, self.family, self.config, self.base = f"config.json of {family}", family, config, base
        self.others = [*self.OTHERS, *others]  # a family's own older names
        self.version = f"transformers {transformers.__version__}"

    def json(self, **changes):
        base = dict(model_type=self.family, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    vocab_size=VOCAB, max_position_embeddings=POSITIONS, rms_norm_eps=1e-5, **self.base)
        return {name: value for name, value in {**base, **changes}.items() if value is not MISSING}

    def values(self, field, kind):
        if field in self.VALUES:
            return self.VALUES[field]
        return next((values for name, values in self.BY_TYPE.items() if name in kind), [None, {}, []])

    def cases(self):
        fields = {f.name: str(f.type) for f in dataclasses.fields(self.config) if not f.name.startswith("_")}
        fields |= {name: "bool" for name in self.others if name not in fields}
        for field, kind in sorted(fields.items()):
            if field in self.LEFT_OUT:
                continue
            for value in self.values(field, kind):
                yield field, value, {field: value}
            if field in self.base or field in self.json():
                # Shapes come from the file's own numbers, so only what fits can be left out.
                if field in ("max_position_embeddings", "rms_norm_eps", "sliding_window"):
                    yield field, MISSING, {field: MISSING}
        # Where a window is used, how many blocks have it; where there is no own type, the older names.
        if "use_sliding_window" in fields and self.family in ("qwen2", "qwen3"):
            for first in [0, 1, 2]:
                yield "max_window_layers, the window used", first, dict(use_sliding_window=True, max_window_layers=first)
            yield "layer_types, the window used", "mixed", dict(use_sliding_window=True, layer_types=["sliding_attention", "full_attention"])
        for value in [dict(rope_type="linear", factor=2.0), {}, None]:
            yield "rope_scaling beside rope_parameters", value, dict(rope_scaling=value, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=500.0), rope_theta=300.0)
        for rope, beside in self.BESIDE:
            yield "rope_scaling with fields beside it", {**beside, "rope_scaling": rope}, dict(rope_scaling=rope, **beside)

    def write(self, changes, work):
        folder = os.path.join(work, "model")
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(self.json(**changes), file)
        try:
            config = transformers.AutoConfig.from_pretrained(folder)
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            for name, values in model.named_parameters():
                torch.nn.init.normal_(values, 1.0 if "norm" in name else 0.0, 0.3)
            save_file({n: v.contiguous() for n, v in model.state_dict().items() if not (config.tie_word_embeddings and n == "lm_head.weight")}, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        except Exception as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        return ["--model", folder]

    def logits(self, options):
        try:
            folder = options[1]
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            with torch.no_grad():
                return model(torch.tensor([IDS])).logits[0, -1].numpy()
        except Exception as error:
            raise Refused(f"{type(error).__name__}: {error}") from error


class Lora:
    """adapter_config.json beside an adapter that PEFT made with the field, so that its tensors fit; where LoraConfig does not take
    the value, the field is put into the file of a plain adapter."""

    KIND, CONFIG, Q, UP = "LoRA", "LoraConfig", "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"
    PLAIN = dict(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    VALUES = {
        "alora_invocation_tokens": [None, [], IDS[5:7]],
        "alpha_pattern": [{"q_proj": 16}, {r"layers\.1\..*": 2.5, "up_proj": 7}, {Q: 3, "q_proj": 1}],
        "arrow_config": [None, {}, {"top_k": 1}],
        "auto_mapping": [None, {}, {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama.modeling_llama"}],
        "base_model_name_or_path": ["another/model", "", None],
        "bias": ["none", "all", "lora_only"],
        "corda_config": [None, {}, {"use_float16_for_covariance": True}],
        "eva_config": [None, {}, {"rho": 3.0}],
        "exclude_modules": [["q_proj"], r".*layers\.0\..*", [UP, "layers.1.self_attn.q_proj"]],
        "fan_in_fan_out": [True, False, None],
        "init_lora_weights": [True, False, None, "gaussian", "Gaussian", "olora", "OLoRA", "pissa", "PiSSA", "pissa_niter_4", "eva", "corda", "loftq", "orthogonal", "lora_ga", "mica", "unheard of"],
        "kasa_config": [None, {}, {"beta": 0.5}],
        "layer_replication": [None, [], [[0, 2], [1, 2]]],
        "layers_pattern": [None, "layers", ["h", "layers"]],
        "layers_to_transform": [[1], 0, []],
        "loftq_config": [None, {}, {"loftq_bits": 4, "loftq_iter": 1}],
        "lora_alpha": [1, 16, 2.5, -4, 0],
        "lora_dropout": [0.0, 0.5, 0],
        "lora_ga_config": [None, {}, {"scale": "stable"}],
        "megatron_config": [None, {}, {"tensor_model_parallel_size": 1}],
        "megatron_core": ["megatron.core", "another", None],
        "modules_to_save": [["lm_head"], ["embed_tokens"], [], ["input_layernorm"]],
        "monteclora_config": [None, {}, {"num_samples": 2}],
        "peft_type": ["LORA", "ADALORA", "LOHA", "IA3", "VERA", "lora", None, MISSING],
        "peft_version": ["0.21.2", "0.5.0", None],
        "qalora_group_size": [8, 16, 32],
        "r": [1, 3, 8, MISSING],
        "rank_pattern": [{"q_proj": 2}, {r"layers\.1\..*": 5, "up_proj": 1}, {Q: 3, "q_proj": 1}],
        "revision": ["main", "", None],
        "runtime_config": [None, {}, {"ephemeral_gpu_offload": True}],
        "target_modules": [["q_proj"], r".*\.(q|v|down)_proj", "all-linear", [Q, UP], ["self_attn.o_proj"], ["lm_head"], ["embed_tokens", "q_proj"]],
        "target_parameters": [None, [], ["mlp.up_proj.weight"]],
        "task_type": ["CAUSAL_LM", "SEQ_CLS", None],
        "trainable_token_indices": [None, [1, 2, 3], {"embed_tokens": IDS[:4]}],
        "use_bdlora": [None, {}, {"nblocks": 2, "target_modules_bd_a": ["q_proj"]}],
        "velora_config": [None, {}, {"num_groups": 4}],
    }

    def __init__(self):
        import peft

        self.peft, self.name, self.version = peft, f"adapter_config.json of {self.KIND}", f"PEFT {peft.__version__}, transformers {transformers.__version__}"

    def cases(self):
        yield from self.fields()
        for name in ["arrow_config", "corda_config", "eva_config", "kasa_config", "lora_ga_config", "megatron_config", "monteclora_config", "use_bdlora", "velora_config", "layer_replication", "trainable_token_indices"]:
            yield f"{name} in the file of a plain adapter", {}, {name: {}, "peft_version": self.peft.__version__}
        for init in ["olora", "pissa"]:
            for use in ["use_rslora", "use_dora"]:
                yield f"{use}, {init}", True, {use: True, "init_lora_weights": init}
            yield f"rank_pattern, {init}", {"q_proj": 2}, dict(rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 3}, init_lora_weights=init)
        yield "rank_pattern, use_rslora", {"q_proj": 2}, dict(rank_pattern={"q_proj": 2}, use_rslora=True)
        yield "use_dora, fan_in_fan_out", True, dict(use_dora=True, fan_in_fan_out=True)
        yield "use_dora, rank_pattern", {"q_proj": 2}, dict(use_dora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 3})
        yield "layers_to_transform, full names", [0], dict(layers_to_transform=[0], target_modules=[self.Q, "up_proj"])
        yield "a field of no class", 1, dict(unheard_of=1)

    def fields(self):
        for name in sorted(f.name for f in dataclasses.fields(getattr(self.peft, self.CONFIG))):
            for value in self.VALUES.get(name, [True, False, None]):
                # PEFT asks for layers where it is given what stands before them.
                yield name, value, {name: value, **(dict(layers_to_transform=[1]) if name == "layers_pattern" else {})}

    def base(self, folder):
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def write(self, changes, work):
        folder, adapter = os.path.join(work, "base"), os.path.join(work, "adapter")
        shutil.rmtree(adapter, ignore_errors=True)
        if not os.path.exists(folder):
            # With biases, so that what trains biases has some.
            Folder("llama", None, attention_bias=True, mlp_bias=True).write({}, work)
            os.rename(os.path.join(work, "model"), folder)
        try:
            torch.manual_seed(0)
            if self.made_by_peft(changes):
                self.save(folder, adapter, {**self.PLAIN, **changes})
                return ["--model", folder, "--adapter", adapter]
        except Exception:
            shutil.rmtree(adapter, ignore_errors=True)
        torch.manual_seed(0)
        self.save(folder, adapter, self.PLAIN)
        path = os.path.join(adapter, "adapter_config.json")
        with open(path) as file:
            config = {**json.load(file), **changes}
        with open(path, "w") as file:
            json.dump({name: value for name, value in config.items() if value is not MISSING}, file)
        return ["--model", folder, "--adapter", adapter]

    def made_by_peft(self, changes):
        # These are overwritten when PEFT saves.
        return not any(value is MISSING or name in ("peft_type", "peft_version", "base_model_name_or_path", "runtime_config", "inference_mode") for name, value in changes.items())

    def save(self, folder, adapter, fields):
        model = self.peft.get_peft_model(self.base(folder), getattr(self.peft, self.CONFIG)(**fields))
        for values in model.parameters():
            if values.requires_grad:
                values.data.add_(0.2 * torch.randn_like(values))
        model.save_pretrained(adapter)

    def logits(self, options):
        try:
            torch.manual_seed(1)
            model = self.peft.PeftModel.from_pretrained(self.base(options[1]), options[3]).eval()
            ids = torch.tensor([IDS])
            with torch.no_grad():
                return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].numpy()
        except Exception as error:
            raise Refused(f"{type(error).__name__}: {error}") from error


class Ia3(Lora):
    """The same of IA3."""

    KIND, CONFIG, K, DOWN = "IA3", "IA3Config", "model.layers.1.self_attn.k_proj", "model.layers.0.mlp.down_proj"
    PLAIN = dict(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    VALUES = {
        **{name: Lora.VALUES[name] for name in ("auto_mapping", "base_model_name_or_path", "modules_to_save", "peft_version", "revision", "task_type")},
        "exclude_modules": [["k_proj"], r".*layers\.0\..*", [DOWN]],
        "feedforward_modules": [[], ["k_proj"], ["k_proj", "down_proj"], r".*\.down_proj", r".*\.1\..*", ["up_proj"], None, MISSING],
        "peft_type": ["IA3", "ia3", None, MISSING],
        "target_modules": [["down_proj", "v_proj"], r".*\.(q|v|down)_proj", "all-linear", [K, "down_proj"], ["lm_head", "down_proj"], None],
    }

    def cases(self):
        yield from self.fields()
        yield "a field of no class", 1, dict(unheard_of=1)


class Gguf:
    """Metadata of a GGUF file of the architecture llama."""

    NUMBERS = [0.0, 2.0, 8.0]
    COUNTS = [0, 1, 4]
    VALUES = {
        "attention.causal": [True, False, True],
        "attention.head_count_kv": [1, 2, 4],
        "attention.key_length": [8, 16, 4],
        "attention.layer_norm_rms_epsilon": [1e-5, 1e-2, 0.5],
        "attention.value_length": [8, 16, 4],
        "context_length": [64, 128, 48],
        "rope.dimension_count": [8, 4, 16],
        "rope.freq_base": [100.0, 10000.0, 500000.0],
        "rope.scaling.attn_factor": [1.0, 2.0, 0.5],
        "rope.scaling.finetuned": [True, False, True],
        "rope.scaling.type": ["none", "linear", "yarn"],
        "tensor_data_layout": ["a", "b", "c"],
        "use_parallel_residual": [True, False, True],
        "vocab_size": [160, 100, 200],
    }
    YARN = {
        "rope.scaling.factor": [0.0, 2.0, 8.0],
        "rope.scaling.original_context_length": [0, 16, 1000],
        "rope.scaling.attn_factor": [1.0, 1.5, 0.5],
        "rope.scaling.yarn_beta_fast": [32.0, 100.0, 8.0],
        "rope.scaling.yarn_beta_slow": [1.0, 16.0, 0.1],
        "rope.scaling.yarn_ext_factor": [0.0, 1.0, 0.5],
        "rope.scaling.yarn_attn_factor": [1.0, 2.0],
        "rope.scaling.yarn_log_multiplier": [0.0, 0.1],
    }
    WHOLE = ("count", "length", "dim", "window", "group", "layer", "num", "period", "pattern", "rank", "step")

    def __init__(self):
        self.name, self.version = "GGUF metadata of llama", f"llama.cpp, xllamacpp {importlib.metadata.version('xllamacpp')}"

    def cases(self):
        import gguf

        made_of = {"block_count", "embedding_length", "feed_forward_length", "attention.head_count"}
        keys = {
            value.removeprefix("{arch}.")
            for group in (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
            for value in vars(group).values()
            if isinstance(value, str) and value.startswith("{arch}.")
        }
        for key in sorted(keys - made_of):
            default = self.COUNTS if any(word in key for word in self.WHOLE) else self.NUMBERS
            for value in self.VALUES.get(key, default):
                yield key, value, {key: value}
        for value in self.NUMBERS:
            yield "rope.scaling.factor of linear", value, {"rope.scaling.type": "linear", "rope.scaling.factor": value}
            yield "rope.scaling.factor of none", value, {"rope.scaling.type": "none", "rope.scaling.factor": value}
            yield "rope.scaling.factor before rope.scale_linear", value, {"rope.scaling.factor": value, "rope.scale_linear": 4.0}
        yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 4096}
        for key, values in self.YARN.items():
            for value in values:
                yield f"{key} of yarn", value, {**yarn, key: value}
        for divisors in [[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 4.0, 8.0]]:
            yield "rope_freqs.weight", divisors, {"divisors": divisors}
        yield "rope_freqs.weight and a factor", [1.0, 2.0, 4.0, 8.0], {"divisors": [1.0, 2.0, 4.0, 8.0], "rope.scaling.factor": 2.0}
        for kind in ["attn_q", "attn_output", "ffn_down"]:
            yield "a bias", kind, {"bias": kind}

    def write(self, changes, work):
        import gguf

        path = os.path.join(work, "model.gguf")
        base = {"context_length": POSITIONS, "embedding_length": 32, "block_count": 2, "feed_forward_length": 48, "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5}
        metadata = {**base, **{k: v for k, v in changes.items() if k not in ("divisors", "bias")}}
        writer = gguf.GGUFWriter(path, "llama")
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        for key, value in metadata.items():
            kinds[type(value)](f"llama.{key}", value)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        # Bytes as GPT-2's vocabulary writes them, and what the merge makes.
        writer.add_token_list([chr(33 + i) if i < 94 else chr(0x100 + i) for i in range(VOCAB - 1)] + ["!!"])
        writer.add_token_types([1] * VOCAB)
        writer.add_token_merges(["! !"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_add_bos_token(False)
        rng = np.random.default_rng(3)
        def add(name, *shape, mean=0.0):
            writer.add_tensor(name, (mean + 0.3 * rng.standard_normal(shape)).astype(np.float32))
        width, kv = 4 * metadata.get("attention.key_length", 8), metadata["attention.head_count_kv"]
        add("token_embd.weight", VOCAB, 32), add("output.weight", VOCAB, 32), add("output_norm.weight", 32, mean=1.0)
        for layer in range(2):
            shapes = dict(attn_norm=(32,), ffn_norm=(32,), attn_q=(width, 32), attn_k=(width // 4 * kv, 32), attn_v=(width // 4 * kv, 32), attn_output=(32, width), ffn_gate=(48, 32), ffn_up=(48, 32), ffn_down=(32, 48))
            for name, shape in shapes.items():
                add(f"blk.{layer}.{name}.weight", *shape, mean=1.0 if "norm" in name else 0.0)
            groups = [["attn_q", "attn_k", "attn_v"], ["attn_output"], ["ffn_gate", "ffn_up", "ffn_down"]]
            for name in next((group for group in groups if changes.get("bias") in group), []):
                add(f"blk.{layer}.{name}.bias", shapes[name][0])
        if "divisors" in changes:
            writer.add_tensor("rope_freqs.weight", np.array(changes["divisors"], np.float32))
        writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
        return ["--model", path]

    def logits(self, options):
        """Log-probabilities, since llama.cpp's server tells no logits; in a process of its own, which a bad file may end."""
        done = subprocess.run([sys.executable, __file__, "--llama-cpp", options[1]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise Refused((done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1])
        return np.array(json.loads(done.stdout.strip().splitlines()[-1]))


def llama_cpp(path):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = path, 256, 0, 1
    params.cpuparams.n_threads, params.verbosity, params.warmup = 1, -1, False
    # Keys and values in full, and no fast attention, which rounds them.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    answer = server.handle_completions({"prompt": IDS, "max_tokens": 1, "temperature": 0.0, "n_probs": VOCAB})
    answer = json.loads(answer) if isinstance(answer, str) else answer
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    values = [None] * VOCAB
    for entry in top:
        values[entry["id"]] = entry["logprob"]
    print(json.dumps(values))


KINDS = [
    lambda: Folder("llama", transformers.LlamaConfig),
    lambda: Folder("mistral", transformers.MistralConfig, sliding_window=None),
    lambda: Folder("qwen2", transformers.Qwen2Config, sliding_window=8),
    lambda: Folder("qwen3", transformers.Qwen3Config, sliding_window=8, head_dim=8),
    lambda: Folder("smollm3", transformers.SmolLM3Config, sliding_window=8, tie_word_embeddings=False, pad_token_id=0),
    lambda: Folder("granite", transformers.GraniteConfig, sliding_window=None),
    lambda: Folder("olmo2", transformers.Olmo2Config, pad_token_id=0),
    lambda: Folder("phi3", transformers.Phi3Config, sliding_window=None, pad_token_id=0),
    lambda: Folder("gemma", transformers.GemmaConfig, head_dim=8),
    lambda: Folder("gemma2", transformers.Gemma2Config, head_dim=8, sliding_window=8),
    lambda: Folder("gemma3_text", transformers.Gemma3TextConfig, others=["rope_local_base_freq", "sliding_window_pattern"], head_dim=8, sliding_window=8),
    Lora,
    Ia3,
    Gguf,
]


def compare(kind, changes, binary, work):
    """(word, detail): equal, refused, or DIFFERENT."""
    options = None
    try:
        options = kind.write(changes, work)
        theirs = kind.logits(options)
    except Refused as error:
        theirs = error
    try:
        mine = ours(binary, options, work) if options else Refused("not tried")
    except Refused as error:
        mine = error
    if isinstance(theirs, Refused):
        return ("refused by both" if isinstance(mine, Refused) else "refused there"), str(theirs)
    if isinstance(mine, Refused):
        return "refused", str(mine)
    if isinstance(kind, Gguf):
        mine = mine.astype(np.float64) - np.log(np.exp(mine.astype(np.float64) - mine.max()).sum()) - mine.max()
    error = float(np.abs(mine - theirs).max() / np.abs(theirs).max()) if mine.shape == theirs.shape else np.inf
    return ("equal", f"{error:.0e}") if error < BOUND else ("DIFFERENT", f"off by {error:.1e} of the largest logit")


def shown(value):
    return "missing" if value is MISSING else json.dumps(value)


def run(kind, binary, work, fields, keep):
    """Gives `keep` each field's (value, word)s as soon as they are known, and returns all fields of the kind."""
    word, detail = compare(kind, {}, binary, work)
    if word != "equal":
        sys.exit(f"{kind.name}: the file that fields are set in is {word}: {detail}")
    every = {}
    for field, value, changes in kind.cases():
        every.setdefault(field, []).append((value, changes))
    for field, cases in every.items():
        if not re.search(fields, field):
            continue
        results = []
        for value, changes in cases:
            word, detail = compare(kind, changes, binary, work)
            print(f"{word:16}{kind.name}: {field} = {shown(value)}: {' '.join(detail.split())[:200]}", flush=True)
            results.append((shown(value), word))
        keep(field, results)
    return every


def row(field, results):
    words = {}
    for value, word in results:
        words.setdefault(word, []).append(value)
    cells = "; ".join(f"{word}: " + ", ".join(f"`{value.replace('|', chr(92) + '|')}`" for value in values) for word, values in words.items())
    return f"| `{field}` | {cells} |"


def counts(rows):
    found = {}
    for line in rows.values():
        for word, values in re.findall(r"(equal|refused by both|refused there|refused|DIFFERENT): ((?:`[^`]*`(?:, )?)+)", line):
            found[word] = found.get(word, 0) + values.count("`") // 2
    return ", ".join(f"{found[word]} {word}" for word in ["equal", "refused", "refused there", "refused by both", "DIFFERENT"] if word in found)


def read_tables(path):
    """{name of a kind: (version, {field: its row})} of a file that `write_tables` wrote."""
    tables = {}
    if not path or not os.path.exists(path):
        return tables
    with open(path) as file:
        for part in file.read().split("\n## ")[1:]:
            version = re.search(r"^Beside (.*?)(?:\.|: .*)$", part, re.M)
            rows = {re.match(r"\| `([^`]*)`", line)[1]: line for line in part.splitlines() if line.startswith("| `")}
            tables[part.splitlines()[0]] = (version and version[1], rows)
    return tables


def write_tables(path, tables, order):
    commit = subprocess.run(["git", "-C", ROOT, "log", "-1", "--format=%h"], capture_output=True, text=True).stdout.strip()
    lines = [HEAD, f"Last written {datetime.date.today()}, with the sources of commit {commit or 'unknown'}.", ""]
    for name in sorted(tables, key=lambda name: order.index(name) if name in order else len(order)):
        version, rows = tables[name]
        lines += [f"## {name}", "", f"Beside {version}: {counts(rows)}.", "", "| field | values |", "|---|---|", *[rows[field] for field in sorted(rows)], ""]
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".part", "w") as file:
        file.write("\n".join(lines))
    os.replace(path + ".part", path)


HEAD = """# What is read as the program that wrote it means it

Made by `scripts/verify_meaning.py`; run it again after a change of what is read. Each field is set to the values beside it, one at
a time, in a tiny model with random weights, and the logits after 40 tokens are compared. **equal**: within 1e-4 of the largest.
**refused**: fourbit says that it does not read it. **refused there**: the other program does not read it, fourbit does; **refused by
both**. Nothing may be different in silence. Adapters are made by PEFT with the field set, where its LoraConfig takes the value; else
the field is put into the file of a plain one. llama.cpp reports log-probabilities, so these are compared with fourbit's for GGUF files.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fourbit", default=os.path.join(ROOT, "target/release/fourbit"))
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    parser.add_argument("--fields", default="", help="a regular expression: fields whose name it finds")
    parser.add_argument("--output", help="write the tables to this file")
    parser.add_argument("--llama-cpp", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.llama_cpp:
        return llama_cpp(arguments.llama_cpp)
    tables, order, wrong = read_tables(arguments.output), [], []
    with tempfile.TemporaryDirectory() as work:
        for make in KINDS:
            try:
                kind = make()
            except (importlib.metadata.PackageNotFoundError, ImportError) as missing:
                print(f"skip  a kind of file: {missing}", flush=True)
                continue
            order.append(kind.name)
            if arguments.only not in kind.name:
                continue
            version, rows = tables.get(kind.name, (None, {}))
            rows = rows if version == kind.version else {}
            tables[kind.name] = (kind.version, rows)

            def keep(field, results):
                rows[field] = row(field, results)
                wrong.extend(f"{kind.name}: {field} = {value}" for value, word in results if word == "DIFFERENT")
                if arguments.output:
                    write_tables(arguments.output, tables, order)

            every = run(kind, arguments.fourbit, work, arguments.fields, keep)
            for gone in set(rows) - set(every):
                del rows[gone]
            print(f"{kind.name}: {counts(rows)}", flush=True)
    if arguments.output:
        write_tables(arguments.output, tables, order)
    sys.exit("different in silence: " + "; ".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
