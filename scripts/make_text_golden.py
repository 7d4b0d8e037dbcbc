"""Writes tests/golden/text.json: token ids, rendered chats and answer masks by transformers, for tests/data.rs.

    pip install transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 jinja2
    python scripts/make_text_golden.py

Everything is made here: two small vocabularies are trained on generated text, written as GGUF files, and read back by
transformers. The chat layouts are those of well-known model families, written anew with `{% generation %}` marks
around what the assistant says, from which transformers computes its mask of assistant tokens.
"""

import json
import os
import random
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import tokenizers
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "tests", "golden", "text.json")

TEXTS = [
    "Hello, world!",
    " leading blank",
    "  two blanks",
    "trailing blanks   ",
    "",
    " ",
    "\n",
    "\n\n\t \r\n  x",
    "It's I'll WE'VE they'd DON'T",
    "3 12 345 6789 3.14159 1,000,000 x86_64 ½ Ⅷ ٣",
    "fn main() {\n    let x: u32 = 0x1F;\n\tprintln!(\"{x:?}\");\n}\n\n\n",
    "naïve café — “quotes” … ß ﬁ Ångström",
    "Привет мир, 你好世界。こんにちは 안녕하세요 שלום",
    "🙂👩‍👩‍👧‍👦🇩🇪 a🙂b",
    "a\u00a0b\u200bc\ufeffd\u0301e\x00f\x7f",
    "<s> </s> <unk> <0x41> [INST]",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>tail",
    "one<|eot_id|> two <|eot_id|>three",
    "the " * 20 + "end",
]

# (name, vocabulary, bos, eos, template)
CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You help.<|im_end|>
' }}{% endif %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant
' }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '
' }}{% else %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA2 = """{%- if messages[0].role == 'system' %}
    {%- set system = '<<SYS>>\\n' ~ messages[0].content | trim ~ '\\n<</SYS>>\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system = '' %}
    {%- set turns = messages %}
{%- endif %}
{%- for turn in turns %}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {%- if turn.role == 'user' %}
        {{- bos_token ~ '[INST] ' ~ (system if loop.first else '') ~ turn.content.strip() ~ ' [/INST]' }}
    {%- else %}
        {%- generation %}{{ ' ' ~ turn.content.strip() ~ ' ' ~ eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}"""

LLAMA3 = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'assistant' %}
{{ '<|assistant|>\\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}

{% else %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

# Drops the reasoning of earlier answers and writes an empty one into the last.
THINKING = """{%- set ns = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {%- if loop.index0 > ns.last %}
            {{- '<think>\\n\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

CHATS = [
    ("chatml", "byte_level", "<|im_start|>", "<|im_end|>", CHATML),
    ("llama2", "sentencepiece", "<s>", "</s>", LLAMA2),
    ("llama3", "byte_level", "<|begin_of_text|>", "<|eot_id|>", LLAMA3),
    ("zephyr", "sentencepiece", "<s>", "</s>", ZEPHYR),
    ("thinking", "byte_level", None, "<|im_end|>", THINKING),
]

SYSTEM = {"role": "system", "content": "Answer in a few words."}
CONVERSATIONS = [
    [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Hello! How are you?"}],
    [SYSTEM, {"role": "user", "content": "How many cats?"}, {"role": "assistant", "content": "3 cats\n\nand 12 dogs."},
     {"role": "user", "content": "cats"}, {"role": "assistant", "content": "cats"}],
    [{"role": "user", "content": "🙂 naïve?"}, {"role": "assistant", "content": "Oui 🙂\nça va"},
     {"role": "user", "content": "  blanks  "}, {"role": "assistant", "content": "5"},
     {"role": "user", "content": "more"}, {"role": "assistant", "content": "no more."}],
]


def corpus():
    rng = random.Random(1)
    names = ["cat", "dog", "house", "river", "world", "user", "assistant", "system", "number", "question", "blank"]
    verbs = ["sees", "finds", "answers", "helps", "likes", "has", "writes", "trims"]
    lines = []
    for _ in range(3000):
        a, v, b = rng.choice(names), rng.choice(verbs), rng.choice(names)
        n = rng.randrange(2000)
        lines.append(rng.choice([
            f"The {a} {v} the {b}. How many {b}s? {n}!", f"Hello {a}, it's {n} {b}s; they'll {v} more, don't they?",
            f"    let {a}_{b} = {n};\n\tprintln!(\"{{{a}}}\");\n", f"naïve café — “{a}” … Привет {b} 你好世界 🙂 {n}.{n}",
            f"[INST] {a} [/INST] {b}\n\n### {a.upper()}: {b}"]))
    return lines


def byte_level():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>",
               "<|end_header_id|>", "<|eot_id|>"]
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=700, special_tokens=special,
                                                        initial_alphabet=sorted(alphabet), show_progress=False))
    model = json.loads(t.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {"model": "gpt2", "tokens": tokens, "token_types": [3 if x in special else 1 for x in tokens],
            "merges": [" ".join(m) for m in model["merges"]], "bos": 0, "eos": 0, "unk": 0, "pad": 0}


def sentencepiece():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.pre_tokenizer = pre_tokenizers.Split(Regex("(?<=[^▁])(?=▁)"), "isolated")
    t.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=500, show_progress=False))
    model = json.loads(t.to_str())["model"]
    merged = [a + b for a, b in model["merges"]]
    single = sorted(x for x in model["vocab"] if x not in merged and x != "\n" and x != "\t")
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + merged + single
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(merged) + len(single))
    scores = [0.0] * 259 + [-float(i) for i in range(len(merged) + len(single))]
    return {"model": "llama", "tokens": tokens, "token_types": kinds, "scores": scores, "bos": 1, "eos": 2, "unk": 0}


def through_gguf(vocab, pre=None):
    """transformers' tokenizer of a GGUF file with this vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        w = gguf.GGUFWriter(os.path.join(folder, "v.gguf"), "llama")
        for key, value in [("context_length", 64), ("embedding_length", 8), ("block_count", 1),
                           ("feed_forward_length", 16)]:
            getattr(w, f"add_{key}")(value)
        w.add_head_count(1)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_tokenizer_model(vocab["model"])
        if pre:
            w.add_tokenizer_pre(pre)
        w.add_token_list(vocab["tokens"])
        w.add_token_types(vocab["token_types"])
        if "merges" in vocab:
            w.add_token_merges(vocab["merges"])
        if "scores" in vocab:
            w.add_token_scores(vocab["scores"])
        w.add_bos_token_id(vocab["bos"])
        w.add_eos_token_id(vocab["eos"])
        w.add_unk_token_id(vocab["unk"])
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        return AutoTokenizer.from_pretrained(folder, gguf_file="v.gguf")


def like_originals(vocab):
    """The layout of the `tokenizer.json` of Llama 2, TinyLlama and Mistral 7B: a blank before each piece of text."""
    base = json.loads(through_gguf(vocab).backend_tokenizer.to_str())
    t = Tokenizer(models.BPE(vocab=base["model"]["vocab"], merges=[tuple(m) for m in base["model"]["merges"]],
                             unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    t.add_special_tokens([tokenizers.AddedToken(x, normalized=False, special=True) for x in ("<unk>", "<s>", "</s>")])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1",
                                                     special_tokens=[("<s>", 1)])
    return t


def smollm(vocab):
    """The layout of SmolLM2's `tokenizer.json`: digits one by one."""
    t = Tokenizer.from_str(through_gguf(vocab).backend_tokenizer.to_str())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return t


def main():
    vocabs = {"byte_level": byte_level(), "sentencepiece": sentencepiece()}
    ids, decoded = {}, {}
    backends = {pre: through_gguf(vocabs["byte_level"], pre).backend_tokenizer
                for pre in ("gpt-2", "llama-bpe", "qwen2", "tekken")}
    for pre in ("llama-bpe", "tekken"):
        backends[pre].model.ignore_merges = True
    backends["smollm"] = smollm(vocabs["byte_level"])
    backends["sentencepiece"] = like_originals(vocabs["sentencepiece"])
    for name, t in backends.items():
        encoded = [t.encode(text, add_special_tokens=False).ids for text in TEXTS]
        ids[name] = encoded
        decoded[name] = [t.decode(e, skip_special_tokens=True) for e in encoded]
    # By transformers' own import: equal for texts that neither begin with a blank nor hold special tokens.
    own = through_gguf(vocabs["sentencepiece"])
    plain = [i for i, x in enumerate(TEXTS) if x and not x.startswith(" ") and "<s>" not in x]
    for i in plain:
        assert own.encode(TEXTS[i], add_special_tokens=False) == ids["sentencepiece"][i], TEXTS[i]
    chats = []
    for name, vocab, bos, eos, template in CHATS:
        backend = backends["smollm" if vocab == "byte_level" else vocab]
        t = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, chat_template=template)
        for messages in CONVERSATIONS:
            out = t.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
            prompt = t.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
            chats.append({"name": name, "vocab": vocab, "bos": bos, "eos": eos, "template": template,
                          "messages": messages, "text": t.apply_chat_template(messages, tokenize=False),
                          "prompt": prompt, "ids": list(out["input_ids"]), "mask": list(out["assistant_masks"])})
    golden = {"versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
              "vocabs": vocabs, "texts": TEXTS, "ids": ids, "decoded": decoded, "chats": chats}
    with open(OUT, "w", encoding="utf-8") as f:
        json.dump(golden, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    print(os.path.getsize(OUT), "bytes,", len(chats), "chats")


if __name__ == "__main__":
    main()
