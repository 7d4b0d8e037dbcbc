"""Compiles the variants of a list of `write_shaders` for each card; keeps their costs in docs/shader-cost.tsv and sums them up in
docs/shader-cost.md, or compares a few of them with what is kept. Run by scripts/shader-cost.sh.

    table.py DIR/spirv_1_6.list [--check]
"""
import concurrent.futures
import datetime
import pathlib
import re
import subprocess
import sys

from assembly import hot, share
from driver import Card

ROOT = pathlib.Path(__file__).resolve().parents[2]
KEPT, PAGE = ROOT / "docs/shader-cost.tsv", ROOT / "docs/shader-cost.md"
CARDS = ["navi21", "navi31"]
COLUMNS = "card wave vgprs sgprs spills scratch lds_bytes waves code busy of fma valu dual lds vmem smem salu share variant".split()
MOST_WAVES = 16  # of a SIMD, on both cards
EXACT = ["wave", "spills", "scratch", "lds_bytes", "of"]
LOOSE = ["vgprs", "sgprs", "waves", "code", "busy", "fma", "valu", "dual", "lds", "vmem", "smem", "salu"]

PLAIN = "weight_rows/operand_vec4/low_rank_none/bias_none"
TILES = "store_vec4 ROWS=128 COLS=64 TM=8 TN=4 STEP=16 PARTS=1 POW2=1"
NF4 = "decode_table/scale_absmax/codebook_nf4/table_workgroup"
CHECKED = [
    f"product/tiles.forward/decode_f32/scale_none/{PLAIN}/base_none/{TILES}",
    f"product/tiles.backward/decode_f32/scale_none/{PLAIN}/base_self/{TILES}",
    f"product/tiles.forward/{NF4}/{PLAIN}/base_none/{TILES} BITS=4",
    f"product/tiles.backward/{NF4}/{PLAIN}/base_self/{TILES} BITS=4",
    f"product/gemv.forward/{NF4}/weight_rows/operand_vec4/low_rank_vec4/bias_add/base_none/store_scalar LANES=64 ROWS=4 VECTORS=2 POW2=1 BITS=4",
    "attention/tiles.forward HEAD_DIM=64 PARTS=4 EACH=2 BLOCK=8",
    "norm.forward/element_vec4 LANES=256 SIDE=16",
    "optimizer.adamw LANES=256 SIDE=16 CHUNK=2048",
]


def is_for_processors(needs, variant):
    """Whether the variant is chosen for drivers on the processor alone: what shuffles within subgroups, attention whose threads hold at
    most two vec4s of a row (one backward), scales by one thread per block, norms by 16."""
    attention = re.match(r"attention/tiles\.(forward|backward).* HEAD_DIM=(\d+) PARTS=(\d+)", variant)
    if attention:
        share = 2 if attention[1] == "forward" else 1
        return int(attention[2]) <= share * 4 * int(attention[3])
    few = {"quantize.block_scales": " LANES=1 ", "norm.": " LANES=16 "}
    return needs == "subgroups" or any(variant.startswith(name) and lanes in variant for name, lanes in few.items())


def variants(path):
    """(file, entry point, variant) of what GPUs are given."""
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [(path.parent / row[0], row[1], row[4]) for row in rows if not is_for_processors(row[2], row[4])]


def cost(card, family, file, entry, variant):
    said, text = card.compile(file.read_bytes(), entry)
    of, counts = hot(text)
    # RADV counts a wave of 64 lanes as two: its registers fill the file at half of what is said.
    waves = said["Subgroups per SIMD"] * 32 // said["Lanes"]
    spills = said["Spilled VGPRs"] + said["Spilled SGPRs"]
    whole = [said["Lanes"], said["VGPRs"], said["Pre-Sched SGPRs"], spills, said["Scratch size"], said["LDS size"], waves]
    whole += [said["Instructions"], said["Inverse Throughput"]]
    loop = [counts[kind] for kind in "fma valu dual lds vmem smem salu".split()]
    values = [family, *whole, of, *loop, round(100 * share(counts)), variant]
    return dict(zip(COLUMNS, map(str, values)))


def compiled(family, chosen):
    """The version of Mesa, and the costs on a card. A process per card, since RADV reads the card's name once."""
    card = Card(family)
    return card.mesa, [cost(card, family, *one) for one in chosen]


def on_all_cards(chosen):
    with concurrent.futures.ProcessPoolExecutor(len(CARDS)) as pool:
        found = list(pool.map(compiled, CARDS, [chosen] * len(CARDS)))
    return found[0][0], [row for rows in zip(*(costs for _, costs in found)) for row in rows]


def keep(mesa, rows):
    lines = ["\t".join(row[column] for column in COLUMNS) for row in rows]
    KEPT.write_text("\n".join([f"# {mesa}", "\t".join(COLUMNS), *lines]) + "\n")


def kept():
    mesa, columns, *lines = KEPT.read_text().splitlines()
    return mesa.removeprefix("# "), [dict(zip(columns.split("\t"), line.split("\t"))) for line in lines]


def differences(before, after):
    """What differs at all, or by more than an eighth and more than two."""
    for column in EXACT + LOOSE:
        was, is_ = before[column], after[column]
        if column in LOOSE and abs(int(was) - int(is_)) <= max(2, int(was) / 8):
            continue
        if was != is_:
            yield f"{column} {was} -> {is_}"


def check(all_variants):
    """Whether the costs of a few variants are those that are kept."""
    mesa, rows = kept()
    chosen = [one for one in all_variants if one[2] in CHECKED]
    now, costs = on_all_cards(chosen)
    if now != mesa:
        print(f"shader-cost: skipped: {KEPT.name} is of {mesa}, and here is {now}", file=sys.stderr)
        return True
    before = {(row["card"], row["variant"]): row for row in rows}
    found = [f"no variant {name}" for name in CHECKED if name not in [one[2] for one in chosen]]
    for row in costs:
        was = before.get((row["card"], row["variant"]))
        if differs := list(differences(was, row)) if was else ["is not kept"]:
            found.append(f"{row['card']} {row['variant']}: {', '.join(differs)}")
    for line in found:
        print(f"shader-cost: {line}", file=sys.stderr)
    if found:
        print("shader-cost: if that is meant, run scripts/shader-cost.sh and keep what it writes", file=sys.stderr)
    else:
        print(f"shader-cost: {len(costs)} of {len(rows)} costs are as kept", file=sys.stderr)
    return not found


def summary(rows):
    """A row per entry point, and one per shader for its entry points that leave room for all waves of a SIMD."""
    groups = {}
    for first, *others in zip(*[iter(rows)] * len(CARDS)):
        entry = re.match(r"[\w/]+\.\w+", first["variant"])[0]
        groups.setdefault(entry, []).append([first, *others])
    merged = {}
    for entry, found in groups.items():
        light = all(int(row["waves"]) == MOST_WAVES for one in found for row in one)
        shader, name = entry.rsplit(".", 1)
        names, costs = merged.setdefault((shader, "" if light else name), ([], []))
        names.append(name)
        costs.extend(found)
    return [row_of(shader, *group) for (shader, _), group in merged.items()]


def row_of(shader, names, costs):
    """The variant in the middle and the worst: fewest waves, then most registers, on both cards."""
    costs = sorted(costs, key=lambda one: (-sum(int(row["waves"]) for row in one), sum(int(row["vgprs"]) for row in one)))
    pair = costs[(len(costs) - 1) // 2], costs[-1]

    def cell(column, card):
        return " / ".join(dict.fromkeys(column(one[card]) for one in pair))

    cells = [cell(lambda row: row["vgprs"], card) for card in range(len(CARDS))]
    cells += [cell(lambda row: row["waves"], card) for card in range(len(CARDS))]
    loop = lambda row: f"{row['fma']} of {int(row['fma']) + int(row['valu']) - int(row['dual'])}"
    cells += [cell(loop, 1), cell(lambda row: row["lds"], 1), cell(lambda row: row["vmem"], 1)]
    cells += [cell(lambda row: row["share"] + " %", card) for card in range(len(CARDS))]
    words = [re.split(r"[/ ]", one[0]["variant"].split(".", 1)[1]) for one in pair]
    worst = " ".join(word for word in words[1] if word not in words[0])
    return f"| {shader}.{', '.join(names)} | {len(costs)} | {' | '.join(cells)} | {worst} |"


def write_page(mesa, rows):
    git = ["git", "log", "-1", "--format=%h", "--", "shaders", "src/kernels"]
    commit = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    spilling = sum(row["spills"] != "0" or row["scratch"] != "0" for row in rows)
    table = [
        f"{datetime.date.today()}, the shaders of commit {commit}, {mesa}. {len(rows) // len(CARDS)} variants for {' and '.join(CARDS)};",
        f"{spilling} of these {len(rows)} spill registers or use scratch memory.",
        "",
        "| kernel | variants | VGPRs 21 | 31 | waves 21 | 31 | FMA of VALU | LDS | VMEM | share 21 | 31 | the worst has |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *summary(rows),
    ]
    head, end = "<!-- scripts/shader-cost.sh writes from here -->", "<!-- to here -->"
    before, rest = PAGE.read_text().split(head)
    PAGE.write_text("\n".join([before + head, *table, end]) + rest.split(end)[1])


def main():
    chosen = variants(pathlib.Path(sys.argv[1]))
    if "--check" in sys.argv:
        sys.exit(not check(chosen))
    mesa, rows = on_all_cards(chosen)
    keep(mesa, rows)
    write_page(mesa, rows)


if __name__ == "__main__":
    main()
