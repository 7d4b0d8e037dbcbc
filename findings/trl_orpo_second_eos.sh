#!/usr/bin/env bash
# TRL's ORPO learns to end an answer twice, and its DPO does not, on the same rows.
#
# One would guess: `DPOTrainer` and `ORPOTrainer` of one library make the same tokens of a row of {prompt, chosen, rejected} turns, since
# both render it by the tokenizer's chat template, so that runs of both can be compared.
# What is real: templates of the ChatML kind write a line break behind the token that ends a turn (`<|im_end|>\n`: Qwen, SmolLM2 and most that
# follow them). DPO takes the rendered text as it is. ORPO splits it into prompt and answer, and then appends EOS unless the answer's last *token* is EOS;
# that is the line break, so that each answer ends with `<|im_end|> \n <|im_end|>`. The second one stands where no conversation has it, so
# that it is very unlikely; it counts in the mean log-probability of an answer, which is what ORPO compares, and the more the shorter the
# answer is.
# Nothing warns. ORPO lies in trl.experimental since 1.0.
#
# Seen 2026-11-30: trl 1.16.0, transformers 5.23.0, tokenizers 0.23.3, Python 3.11.
# Needs python3 with venv, and about 2 GB in a temporary folder. Exit status 0: as described. 1: it changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 transformers==5.23.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0

cat >"$place/rows.py" <<'PY'
import sys, tempfile
import torch, transformers, trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

letters = [chr(c) for c in range(32, 127)] + ["\n"]
vocab = {token: i for i, token in enumerate(["<pad>", "<|im_start|>", "<|im_end|>"] + letters)}
inner = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<pad>", additional_special_tokens=["<|im_start|>"])
tokenizer.chat_template = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
row = {"prompt": [{"role": "user", "content": "Yes?"}], "chosen": [{"role": "assistant", "content": "Yes."}],
       "rejected": [{"role": "assistant", "content": "No."}]}
config = LlamaConfig(vocab_size=len(vocab), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
ends = {}
with tempfile.TemporaryDirectory() as folder:
    for name, trainer, options in (("DPO", DPOTrainer, DPOConfig), ("ORPO", ORPOTrainer, ORPOConfig)):
        LlamaForCausalLM(config).save_pretrained(folder)
        made = trainer(AutoModelForCausalLM.from_pretrained(folder), args=options(folder, bf16=False, use_cpu=True, report_to=[]),
                       train_dataset=Dataset.from_list([row]), processing_class=tokenizer)
        first = made.train_dataset[0]
        ids = first["prompt_ids"] + first["chosen_ids"] if name == "DPO" else first["chosen_input_ids"]
        ends[name] = tokenizer.convert_ids_to_tokens(ids[-4:])
print("trl", trl.__version__, "transformers", transformers.__version__)
for name, tokens in ends.items():
    print(f"{name}: the chosen answer ends with {tokens}")
sys.exit(0 if ends["DPO"][1:] == [".", "<|im_end|>", "\n"] and ends["ORPO"] == [".", "<|im_end|>", "\n", "<|im_end|>"] else 1)
PY
cd "$place"
HF_HUB_OFFLINE=1 "$place/venv/bin/python" rows.py 2>/dev/null || { echo "it changed"; exit 1; }
echo "as described: ORPO ends the answer twice"
