#!/usr/bin/env bash
# The loss of a PEFT model with AdaLoRA holds a training penalty also in eval mode; of an adapter that is loaded for use it is an error.
#
# One would guess: in eval mode `model(ids, labels=ids).loss` is the cross-entropy, so that eval_loss and perplexity of a LoRA and of an
# AdaLoRA adapter compare; and it is the same number whether an adapter was just trained or loaded from its folder.
# What is real: AdaLoRA's forward adds orth_reg_weight times the mean distance of P and Q from orthogonal whenever there are labels. A fresh
# adapter, whose logits are those of the base to the bit, has a loss that is 1 or so above the base's; `exp(loss)` is then nearly three times
# the perplexity. Trainer's eval_loss, load_best_model_at_end and early stopping see that number. Loaded with is_trainable=False, the
# default, the same call raises AttributeError (trainable_adapter_name), while the logits are fine: the loss must be taken from them.
#
# Seen 2026-11-30: peft 0.21.2, transformers 5.23.0, torch 2.15.0, Python 3.11.
# Needs python3 with venv, and about 2 GB in a temporary folder. Exit status 0: as described. 1: it changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 transformers==5.23.0 peft==0.21.2 accelerate==1.15.0

cat >"$place/loss.py" <<'PY'
import sys
import peft, torch, transformers
from peft import AdaLoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.tensor([[3, 10, 17, 24, 31]])
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, attn_implementation="eager")


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def both(model):
    with torch.no_grad():
        out = model(ids, labels=ids)
    return out.loss.item(), torch.nn.functional.cross_entropy(out.logits[0, :-1], ids[0, 1:]).item()


print("peft", peft.__version__, "transformers", transformers.__version__)
kind = AdaLoraConfig(task_type="CAUSAL_LM", init_r=4, target_r=2, tinit=5, tfinal=5, total_step=100, target_modules=["q_proj"])
model = get_peft_model(base(), kind).eval()
plain, fresh = both(base()), both(model)
print(f"base: loss {plain[0]:.4f}, cross-entropy of its logits {plain[1]:.4f}")
print(f"AdaLoRA in eval mode: loss {fresh[0]:.4f}, cross-entropy of its logits {fresh[1]:.4f}")
model.save_pretrained("adapter")
loaded = PeftModel.from_pretrained(base(), "adapter")
with torch.no_grad():
    logits = loaded(ids).logits
entropy = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item()
try:
    both(loaded)
    raised = "nothing"
except AttributeError as error:
    raised = str(error)
print(f"loaded for use: cross-entropy of its logits {entropy:.4f}; with labels it raises: {raised}")
sys.exit(0 if abs(plain[1] - fresh[1]) < 1e-6 and fresh[0] - fresh[1] > 0.5 and abs(entropy - fresh[1]) < 1e-6 and "trainable_adapter_name" in raised else 1)
PY
cd "$place"
HF_HUB_OFFLINE=1 "$place/venv/bin/python" loss.py 2>/dev/null || { echo "it changed"; exit 1; }
echo "as described: a fresh adapter has another loss than its base, and a loaded one has none"
