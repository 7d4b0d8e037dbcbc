"""Writes tests/golden/templates.json: what transformers renders, for tests/templates.rs.

    pip install transformers==5.23.0 jinja2
    python scripts/make_template_golden.py [--check] "$(scripts/templates.sh)"

With --check nothing is written: the file must be what comes out.

Two parts. Small Jinja snippets, each with the text that transformers renders or the fact that it refuses. And hashes of what it makes of
the chat templates that the Python package trl ships (`scripts/templates.sh` fetches them; nothing of them is kept here), for
conversations that are made below: of the text, of the prompt for an answer, and, where a template marks what the assistant
says, of those parts of the text.
"""

import datetime
import json
import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import jinja2
import transformers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template
import tokenizers

OUT = pathlib.Path(__file__).parent / ".." / "tests" / "golden" / "templates.json"

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a \"city\" now, in °C & more.",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "Name of the city"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "nullable": True},
        "days": {"type": "array", "items": {"type": "integer"}}}, "required": ["city"]},
    "return": {"type": "string", "description": "A sentence"}}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time", "parameters": {
    "type": "object", "properties": {}}}}


def call(name, arguments, number=1):
    return {"id": f"call{number:05}", "type": "function", "function": {"name": name, "arguments": arguments}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


SYSTEM = turn("system", "Answer briefly.")
CONVERSATIONS = [
    {"name": "one answer", "messages": [turn("user", "Hello there"), turn("assistant", "Hello! How are you?")]},
    {"name": "system and two answers", "messages": [
        SYSTEM, turn("user", "How many cats?"), turn("assistant", "Three cats.\n\nAnd a dog."), turn("user", "Sure?"),
        turn("assistant", "Yes.")]},
    {"name": "blanks", "messages": [turn("user", "  blanks  \n"), turn("assistant", "\n five "), turn("user", "\t"),
                                    turn("assistant", "six\n")]},
    {"name": "tools, none used", "tools": [WEATHER, CLOCK], "messages": [
        turn("user", "Thanks & bye <3"), turn("assistant", "You're welcome.")]},
    {"name": "a tool is called", "tools": [WEATHER], "messages": [
        turn("user", "Weather in Paris?"),
        turn("assistant", "", tool_calls=[call("get_weather", {"city": "Paris", "days": [1, 2]})]),
        turn("tool", "Sunny, 21 °C", tool_call_id="call00001", name="get_weather"),
        turn("assistant", "It is sunny.")]},
    {"name": "a call ends it", "tools": [WEATHER, CLOCK], "messages": [
        SYSTEM, turn("user", "Weather and time?"),
        {"role": "assistant", "tool_calls": [call("get_weather", {"city": "Zürich", "unit": None}), call("clock", {}, 2)]}]},
    {"name": "arguments as text", "tools": [WEATHER], "messages": [
        turn("user", "Weather in Rome?"),
        turn("assistant", "Let me look.", tool_calls=[call("get_weather", "{\"city\": \"Rome\"}")])]},
    {"name": "reasoning_content", "messages": [
        turn("user", "2 + 2?"), turn("assistant", "4", reasoning_content="Two and two."), turn("user", "3 + 3?"),
        turn("assistant", "6", reasoning_content="Three and\nthree.")]},
    {"name": "thinking, reasoning", "messages": [
        turn("user", "2 + 2?"), turn("assistant", "4", thinking="Two and two."), turn("user", "3 + 3?"),
        turn("assistant", "6", reasoning="Three and three.")]},
    {"name": "think marks", "messages": [
        turn("user", "2 + 2?"), turn("assistant", "<think>\nTwo and two.\n</think>\n\n4"), turn("user", "3 + 3?"),
        turn("assistant", "<think>\nThree and three.\n</think>\n\n6")]},
    {"name": "reasoning and a call", "tools": [WEATHER], "kwargs": {"enable_thinking": True}, "messages": [
        turn("user", "Weather in Oslo?"),
        turn("assistant", "", reasoning_content="I need the tool.", tool_calls=[call("get_weather", {"city": "Oslo"})]),
        turn("tool", "{\"celsius\": -3.5}", tool_call_id="call00001", name="get_weather"),
        turn("assistant", "It is cold.", reasoning_content="Minus three.")]},
    {"name": "no thinking asked for", "kwargs": {"enable_thinking": False}, "messages": [
        SYSTEM, turn("user", "Ready?"), turn("assistant", "Ready.")]},
    {"name": "content in parts", "messages": [
        turn("user", [{"type": "text", "text": "Look: "}, {"type": "text", "text": "what is it?"}]),
        turn("assistant", [{"type": "text", "text": "A cat."}])]},
    {"name": "documents, None and two users", "documents": [{"title": "Cats", "text": "Cats purr."}], "messages": [
        turn("user", "First"), turn("user", "Do cats purr?"), {"role": "assistant", "content": None},
        turn("assistant", "They do.", tool_calls=None)]},
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

# Rendered with these variables.
VALUES = {
    "none_": None, "text": " Ab'c\"é\n", "list_": [3, 1, 2], "words": ["b", "A", "c"], "half": 0.5, "big": 1e20, "small": 1e-7,
    "whole": 2.0, "yes": True, "map_": {"b": 1, "a": [None, True, "x'y"], "é": {"k": "<&>"}}, "empty": "", "nothing": [],
    "rows": [{"n": "a", "v": 1, "t": None}, {"n": "b", "v": 2}, {"n": "a", "v": 3, "t": "x"}], "long": "one two three four five",
}
SNIPPETS = json.load(open(pathlib.Path(__file__).parent / "jinja_snippets.json", encoding="utf-8"))


def tokenizer():
    t = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=t, **SPECIAL)


def digest(text):
    """FNV-1a of 64 bits, which needs no package in the test that compares it."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def undated(text):
    """The text without today's date, which some templates print."""
    now = datetime.datetime.now()
    for form in ("%Y-%m-%d", "%d %b %Y", "%B %d, %Y", "%d %B %Y"):
        text = text.replace(now.strftime(form), "DATE")
    return text


def outcome(render):
    """A hash of the text, or what the template said when it refused."""
    try:
        return digest(undated(render()))
    except jinja2.exceptions.UndefinedError:
        return "refused"
    except jinja2.exceptions.TemplateError as e:
        # Not a fault in the template: it raised this itself.
        return "refused: " + str(e) if type(e) is jinja2.exceptions.TemplateError else "refused"
    except Exception:
        return "refused"


def render(t, template, case, messages, **more):
    return t.apply_chat_template(messages, chat_template=template, tokenize=False, tools=case.get("tools"),
                                 documents=case.get("documents"), **case.get("kwargs", {}), **more)


def marked(t, template, case):
    """The parts of the text that stand inside of generation marks."""
    messages = [{k: v for k, v in m.items() if v is not None} for m in case["messages"]]
    texts, spans = render_jinja_template([messages], tools=case.get("tools"), documents=case.get("documents"),
                                         chat_template=template, return_assistant_tokens_mask=True,
                                         **t.special_tokens_map, **case.get("kwargs", {}))
    return "\0".join(texts[0][a:b] for a, b in spans[0])


def main():
    t = tokenizer()
    hashes = {}
    for path in sorted(pathlib.Path(sys.argv[-1]).glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        rows = []
        for case in CONVERSATIONS:
            messages = case["messages"]
            row = [outcome(lambda: render(t, template, case, messages)),
                   outcome(lambda: render(t, template, case, messages[:-1], add_generation_prompt=True))]
            if "generation" in template:
                row.append(outcome(lambda: marked(t, template, case)))
            rows.append(row)
        hashes[path.stem] = rows
    snippets = []
    for source in SNIPPETS:
        try:
            text = t.apply_chat_template([turn("user", "x")], chat_template=source, tokenize=False, **VALUES)
        except Exception:
            text = None
        snippets.append([source, text])
    golden = {"versions": {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "trl": "1.16.0"},
              "special": SPECIAL, "values": VALUES, "snippets": snippets, "conversations": CONVERSATIONS, "templates": hashes}
    text = json.dumps(golden, ensure_ascii=False, indent=0, separators=(",", ":")) + "\n"
    if "--check" not in sys.argv:
        OUT.write_text(text, encoding="utf-8")
    elif OUT.read_text(encoding="utf-8") != text:
        sys.exit(f"{OUT.name} is not what these versions render")
    refused = sum(o.startswith("refused") for rows in hashes.values() for row in rows for o in row)
    print(len(hashes), "templates,", len(CONVERSATIONS), "conversations,", refused, "refusals,", len(snippets), "snippets")


if __name__ == "__main__":
    main()
