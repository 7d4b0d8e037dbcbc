"""Writes tests/golden/tokenizers.json: what transformers makes of texts and conversations with real tokenizers, for tests/tokenizers.rs.

    pip install transformers==5.23.0 jinja2
    python scripts/make_tokenizer_golden.py [--check] "$(scripts/tokenizers.sh)"

With --check nothing is written: the file must be what comes out.

The texts and conversations are made below, by chance that is the same each time. Of the tokenizers (`scripts/tokenizers.sh` fetches them)
nothing is kept but hashes: of a text's ids with and without the tokens around it, of what the ids decode to, of a conversation's text,
of the prompt for its last answer, and of the ids of both.

Read as tokenizer.json says. Two things are otherwise in transformers, and not here: its class LlamaTokenizer takes Llama 2's vocabulary
alone and puts no blank before a text that begins with one (SentencePiece, llama.cpp and the file do), so the plain class reads that file;
and a text that begins with BOS gets a second one.
"""

import json
import os
import pathlib
import random
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from make_template_golden import CLOCK, WEATHER, call, digest, outcome, turn

OUT = pathlib.Path(__file__).parent / ".." / "tests" / "golden" / "tokenizers.json"
TEXTS, CONVERSATIONS = 300, 50

WORDS = {
    "latin": "river stone window paper Morning don't it'll We've naïve façade über größer niño mañana coração jedną łódź šťastný istanbul'da ağaç",
    "greek": "θάλασσα βιβλίο άνθρωπος ημέρα ΑΘΗΝΑ ς",
    "cyrillic": "река окно бумага Москва щётка їжак ђак",
    "hebrew and arabic": "שלום ספר מַיִם كتاب نهر مُعَلِّم سلام، گل",
    "indic": "नदी किताब क्षत्रिय বই নদী தமிழ் நூல் ನದಿ పుస్తకం",
    "thai and khmer": "แม่น้ำหนังสือ น้ำ ภาษาไทย ភាសាខ្មែរ ລາວ",
    "east asian": "川と石 本を読む カタカナ ﾊﾝｶｸ 书和河流 紙 한국어 책을 읽다 𠮷野家 ㍿",
    "others": "ქართული հայերեն አማርኛ ᏣᎳᎩ ᚠᚢᚦ བོད་ཡིག ᠮᠣᠩᠭᠣᠯ 𐍈𐌰 𝔘𝔫𝔦 𓀀𓂀",
    "signs": "€5 ½ ² ™ → ∑ ≠ ♫ ░▒▓ ▁ ‰ § «so» “so” … — – ¿qué? 'n' №",
    "emoji": "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇯🇵 👍🏽 ❤️ 1️⃣ 🧑🏿‍🚀 🫠 ☃",
}
MARKS = (
    "<s> </s> <unk> <pad> <bos> <eos> <mask> <0x0A> <0xFF> <0x> <unused7> <unused99> [INST] [/INST] <<SYS>> <</SYS>> <|begin_of_text|> "
    "<|end_of_text|> <|eot_id|> <|start_header_id|> <|end_header_id|> <|reserved_special_token_3|> <|python_tag|> <|im_start|> "
    "<|im_end|> <|endoftext|> <|fim_prefix|> <think> </think> <tool_call> </tool_call> <start_of_turn> <end_of_turn> "
    "<start_of_image> <image_soft_token> [multimodal] <table> </table> <h1> <br> <|vision_start|> <|object_ref_end|> [PAD] <|> <|a|>"
).split()
CODE = [
    "fn {0}({1}: &[u8]) -> Option<{2}> {{\n    {1}.iter().map(|b| *b as usize).sum::<usize>().checked_sub({n})\n}}\n",
    "def {0}({1}, *, {2}=None):\n\tif {1} is not {2}:\n\t\treturn [{1}[i:{n}] for i in range(0x{n:x})]\n",
    "#include <{0}.h>\nint main(void) {{ /* {1} */ return {2}->x[{n}] << 3; }}\n",
    '{{"{0}": [{n}, -1.5e-{n}, true, null], "{1}": {{"{2}": "\\u00e9\\n"}}}}',
    '<div class="{0}"><a href="/{1}?q={n}&amp;r=%20">{2}</a></div><!-- {0} -->',
    "for f in *.{0}; do\r\n  sed -e 's/{1}/{2}/g' \"$f\" | head -n{n} >> /dev/null 2>&1\r\ndone",
    "SELECT {0}, COUNT(*) FROM `{1}` WHERE {2} >= {n} GROUP BY 1;--",
    "{0}_{1}::{2}<T>()?.await; x+=1;y-- ;a&&b||!c;//{n}",
    "    {0}:\n      - {1}: {n}\n        {2}: |\n          \\d+(?:\\.\\d{{1,3}})?\n\n\n",
]
ODD = ["\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\u2028", "\x0b", "\x0c", "\x00", "\x1b[0m", "\x7f", "\u0085", "\ufffd", "\ue000", "\u0378",
       "e\u0301", "\u1e69", "s\u0323\u0307", "\u212b", "\ufb01", "\u0130", "\u01c5", "\U0010ffff", "\r", "\u2581\u2581", "\u0345"]


def texts():
    chance = random.Random(13)
    words = {kind: line.split() for kind, line in WORDS.items()}
    every = [word for kind in words.values() for word in kind]
    pick, below = chance.choice, chance.randrange
    out = ["", " ", "a", " a", "a ", "  a  b  ", "\n", "\t", "Hello, world!", "▁", " ▁a", "I'M I'm you'LL ca n't", "\r\n\r\n"]
    for n in (2, 3, 4, 7, 8, 15, 16, 17, 24, 30, 31, 32, 33, 37, 64, 100):
        out += [" " * n, "x" + " " * n + "y", "\n" * n + "z", "\t" * n + "z", "|" + " \n" * (n // 2) + "\t " * (n // 3) + "z"]
    for kind, own in words.items():
        for _ in range(5):
            out.append(pick(["", " ", "\n"]).join(["", *(pick(own) for _ in range(2 + below(6)))]) + pick([".", "!", "", " ", "。", "\n"]))
    for n in (1, 2, 3, 4, 5, 9, 20, 70):
        digits = "".join(pick("0123456789") for _ in range(n))
        out += [digits, f"{digits}.{digits[::-1]},{digits}", " " + digits + "th"]
    out += ["1,234,567.89", "-0.5e-10", "٠١٢٣ ४५६ ໓", "x²³½ⅷ", "0x1F_FFu64", "12:59:03 2024-02-29"]
    for n in (3, 30, 200):
        out += ["ab" * n, "z" * n, "".join(pick("abcdefghijklmnopqrstuvwxyz") for _ in range(n)), "ä" * n, "語" * n, "🙂" * (n // 2), "!" * n,
                "=" * n + "\n" + "-*" * n, "".join(pick("ABCDabcd0189+/") for _ in range(n)) + "=="]
    for mark in MARKS:
        out.append(pick([mark, f"a{mark}b", f" {mark} ", f"{mark}{pick(MARKS)}", f"{mark[:-1]} {mark[-1]}", f"{mark}\n{mark}", mark.upper()]))
    for code in CODE:
        for _ in range(3):
            out.append(code.format(pick(words["latin"]), pick(every), pick(words["latin"]), n=below(3000)))
    for odd in ODD:
        out.append(pick(every) + odd + pick(["", " ", pick(every)]))
    while len(out) < TEXTS:
        kind = below(3)
        if kind == 0:  # characters from anywhere
            codes = (below(pick([0x80, 0x800, 0x3000, 0xD800, 0x20000])) for _ in range(4 + below(20)))
            out.append("".join(map(chr, codes)).replace("\ud800", ""))
        elif kind == 1:  # words of all scripts
            out.append(pick([" ", "", "  ", "-"]).join(pick(every) for _ in range(3 + below(8))))
        else:  # marks within text
            out.append("".join(pick([pick(every), pick(MARKS), pick(ODD), " ", "\n"]) for _ in range(3 + below(9))))
    assert len(out) == TEXTS, len(out)
    return out


def conversations(texts):
    chance = random.Random(31)
    pick, below = chance.choice, chance.randrange
    say = lambda: pick(texts) if below(2) else " ".join(pick(texts) for _ in range(2))
    out = []
    for n in range(CONVERSATIONS):
        case = {"messages": [turn("system", say())] if below(2) else []}
        for _ in range(1 + below(3)):
            case["messages"] += [turn("user", say()), turn("assistant", say())]
        if n % 5 == 3:  # a tool is called, and answers
            case["tools"] = [WEATHER, CLOCK][: 1 + below(2)]
            case["messages"][-1:] = [
                turn("assistant", pick(["", say()]), tool_calls=[call("get_weather", {"city": say(), "days": [below(9)]})]),
                turn("tool", say(), name="get_weather"), turn("assistant", say())]
        elif n % 5 == 4:  # tools that nobody calls, thoughts
            case["tools"], case["kwargs"] = [CLOCK], {"enable_thinking": bool(below(2))}
            case["messages"][-1]["content"] = f"<think>\n{say()}\n</think>\n\n{say()}"
        out.append(case)
    return out


def numbers(ids):
    return digest(" ".join(map(str, ids)))


def of_text(t, text):
    bare = t(text, add_special_tokens=False).input_ids
    around = t(text).input_ids
    if around[:2] == [t.bos_token_id] * 2:
        around = around[1:]
    return [numbers(around), numbers(bare), digest(t.decode(bare, skip_special_tokens=True))]


def of_conversation(t, case):
    def render(messages, **more):
        return t.apply_chat_template(messages, tokenize=False, tools=case.get("tools"), **case.get("kwargs", {}), **more)

    def ids(messages, **more):
        return " ".join(map(str, t(render(messages, **more), add_special_tokens=False).input_ids))

    whole, prompt = (case["messages"], {}), (case["messages"][:-1], {"add_generation_prompt": True})
    return [outcome(lambda: make(part, **more)) for part, more in (whole, prompt) for make in (render, ids)]


def main():
    made = texts()
    chats = conversations(made)
    hashes = {}
    for folder in sorted(pathlib.Path(sys.argv[-1]).iterdir()):
        t = (PreTrainedTokenizerFast if folder.name == "llama2" else AutoTokenizer).from_pretrained(folder)
        hashes[folder.name] = {"texts": [of_text(t, text) for text in made],
                               "conversations": [of_conversation(t, case) for case in chats] if t.chat_template else None}
    golden = {"versions": {"transformers": transformers.__version__, "tokenizers": "3.7.2"}, "texts": made, "conversations": chats,
              "tokenizers": hashes}
    text = json.dumps(golden, ensure_ascii=False, indent=0, separators=(",", ":")) + "\n"
    if "--check" not in sys.argv:
        OUT.write_text(text, encoding="utf-8")
    elif OUT.read_text(encoding="utf-8") != text:
        sys.exit(f"{OUT.name} is not what these versions make")
    refused = [sum(o.startswith("refused") for row in own["conversations"] or [] for o in row) for own in hashes.values()]
    print(len(made), "texts,", len(chats), "conversations; refusals:", dict(zip(hashes, refused)))


if __name__ == "__main__":
    main()
