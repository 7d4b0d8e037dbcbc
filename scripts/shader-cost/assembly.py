"""Counts the instructions of a disassembly of RADV's by what issues them, in the loop where most of the work is."""
import collections
import re

# An instruction that multiplies and adds; v_dot4 and its like do so four times, and count once.
MULTIPLY_ADD = re.compile(r"v_(dual_|pk_)?(fma|fmac|fmaak|fmamk|mac|mad|dot\w*)_\w*(f16|f32|i8|u8|iu8)")
# What only orders the others.
ORDER = re.compile(r"s_(waitcnt|wait_|delay_alu|clause|nop|inst_prefetch|code_end|endpgm|barrier|set_inst)")
KINDS = [  # the first that matches
    ("order", ORDER),
    ("smem", re.compile(r"s_(buffer_)?load")),
    ("salu", re.compile(r"s_")),
    ("fma", MULTIPLY_ADD),
    ("valu", re.compile(r"v_")),
    ("lds", re.compile(r"ds_")),
    ("vmem", re.compile(r"(buffer|global|scratch|flat|image)_")),
]


def kind_of(mnemonic):
    for kind, pattern in KINDS:
        if pattern.match(mnemonic):
            return kind
    raise ValueError(f"{mnemonic}: expected an instruction of RDNA")


def parse(text):
    """The mnemonics of each line in order, and where each label stands; loops as (first, last) line, by their branches back."""
    lines, labels, loops = [], {}, {}
    for line in text.splitlines():
        if label := re.match(r"(BB\d+):", line):
            labels[label[1]] = len(lines)
            continue
        code, encoded, _ = line.partition(";")
        if not encoded:  # how often the filling behind the end is repeated
            continue
        branch = re.match(r"\s*s_c?branch\w* (BB\d+)", code)
        if branch and branch[1] in labels:
            loops[labels[branch[1]]] = len(lines)
        # Two operations issued as one are written with `::` between them.
        lines.append([operation.split()[0] for operation in code.split("::")])
    return lines, sorted(loops.items(), key=lambda loop: loop[1] - loop[0])


def count(lines):
    """Operations by kind; `dual` of them were issued together with the one before."""
    lines = list(lines)
    counts = collections.Counter(kind_of(mnemonic) for line in lines for mnemonic in line)
    counts["dual"] = sum(len(line) - 1 for line in lines)
    return counts


def hot(text):
    """The counts of the loop that does the work, without the loops inside it; of the whole text where there is no loop. The name
    says which. It is the one with most multiply-adds per vector instruction, of those that have nearly as many as any: decoding
    may have more of them than the loop that multiplies, and an adapter's loop is denser than the weight's. Where no loop has a
    multiply-add, it is the one with most vector instructions."""
    lines, loops = parse(text)
    if not loops:
        return "all", count(lines)
    owner = {}
    for loop in loops:  # the smallest first
        for i in range(loop[0], loop[1] + 1):
            owner.setdefault(i, loop)
    own = [count(lines[i] for i in owner if owner[i] == loop) for loop in loops]
    most = max(counts["fma"] for counts in own)
    if most == 0:
        return "loop", max(own, key=lambda counts: counts["valu"])
    return "loop", max((counts for counts in own if counts["fma"] >= 0.6 * most), key=share)


def share(counts):
    """How much of what the vector unit issues multiplies and adds."""
    issued = counts["fma"] + counts["valu"] - counts["dual"]
    return counts["fma"] / issued if issued else 0.0
