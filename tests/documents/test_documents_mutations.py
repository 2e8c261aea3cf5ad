"""Documents broken at random: told as faults, never as anything else, and always the same ones."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.documents import DocumentFaults, Documents, catalogue, load

GOOD = Path(__file__).parents[1] / "data" / "good"
SIGNS = "{}[]:,-#&*!|>'\"%@`\t\\ \u00e9\0"
CATALOGUE = catalogue()  # one object for all, to compare by
KINDS = ("fleet", "workloads", "state", "scenarios", "prices")
# What people leave where a value should stand, and what nobody should.
VALUES = (
    *("", "~", "null", "no", "010", "12:30", "1e3", "1e999", ".inf", ".nan", "-1", "0", "0.5"),
    *("99999999999999999999", "9" * 5000, "0x" + "f" * 5000, "[]", "{}", "[[]]", "{a: {b: c}}"),
    *("- a", "'", '"', "*a", "&a 1", "!!python/object:os.system x", "<<: *a", "{item}", "\t"),
    *("true", "h100-{01..99}", "h100-{01..999999}", "a/0", "../x", "\x00", "\u2028", "\ufeff"),
)


def mutated(text: str, chance: random.Random) -> str:
    """The text after a few changes of the kind that hands and scripts make."""
    for _ in range(chance.randint(1, 3)):
        lines = text.split("\n")
        at = chance.randrange(len(lines))
        line = lines[at]
        match chance.randrange(8):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[chance.randrange(len(lines))])
            case 2:
                lines[at] = " " * chance.randint(1, 3) + line
            case 3:
                cut = chance.randint(0, len(line))
                lines[at] = (
                    line[:cut] + chance.choice("{}[]:,-#&*!|>'\"%@`\t\\ \u00e9\0") + line[cut:]
                )
            case 4 | 5:
                key, colon, _ = line.partition(": ")
                lines[at] = key + colon + chance.choice(VALUES)
            case 6:
                words = line.split(", ")
                word = chance.randrange(len(words))
                key, colon, _ = words[word].partition(": ")
                words[word] = key + colon + chance.choice(VALUES)
                lines[at] = ", ".join(words)
            case 7:
                lines[at] = line.replace(chance.choice("aeiou01"), chance.choice(["", "x", "9"]), 1)
        text = "\n".join(lines) or "\n"
    return text


def loaded(paths: list[str], *, strict: bool) -> Documents | tuple[str, ...]:
    """The documents, or their faults in words."""
    try:
        return replace(load(paths, strict_scenarios=strict), catalogue=CATALOGUE)
    except DocumentFaults as faults:
        return tuple(map(str, faults.faults))


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_document_is_a_fault_and_nothing_else(kind, tmp_path):
    chance = random.Random(f"documents/{kind}")
    good = {k: (GOOD / f"{k}.yaml").read_text("utf-8") for k in KINDS}
    told = 0
    for number in range(60):
        paths = []
        for name, text in good.items():
            file = tmp_path / f"{name}.yaml"
            file.write_text(mutated(text, chance) if name == kind else text, "utf-8")
            paths.append(str(file))
        found = loaded(paths, strict=number % 2 == 0)
        if isinstance(found, tuple):
            told += 1
            assert all(line.startswith(str(tmp_path)) for line in found), found
            assert all("\n" not in line for line in found)
        if number % 10 == 0:
            assert loaded(paths, strict=number % 2 == 0) == found
    assert told > 20  # else the mutations are too tame to test anything


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_cut_short_is_a_fault_and_nothing_else(kind, tmp_path):
    data = (GOOD / f"{kind}.yaml").read_bytes()
    chance = random.Random(f"cut/{kind}")
    for _ in range(15):
        cut = chance.randrange(len(data))
        noise = bytes(chance.randrange(256) for _ in range(chance.randrange(4)))
        paths = [str(GOOD / f"{k}.yaml") for k in KINDS if k != kind]
        file = tmp_path / f"{kind}.yaml"
        file.write_bytes(data[:cut] + noise)
        loaded([*paths, str(file)], strict=True)
