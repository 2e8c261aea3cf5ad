"""Packs .vbp instances with the core that fills shared GPUs, and prints one CSV row each.

Run ``scripts/bench/placement_vector FILE...``; a folder stands for its .vbp files. Every packing is
counted again here. Format: number of dimensions; capacities; number of item types; then a line per
type: sizes, demand. A file ``known_values.csv`` beside (file, LB, OPT, best_heuristic) gives
what others proved and found.
"""

import argparse
import csv
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optimizer.solver.bins import EFFORT, Packing, best_fit, pack
from optimizer.solver.packing import Packer

FIELDS = ("instance", "dimensions", "items", "bins", "bound", "gap_percent", "cpu_s", "best_fit")
KNOWN = ("LB", "OPT", "best_heuristic")


@dataclass(frozen=True, slots=True)
class Instance:
    """Alike items are one size."""

    name: str
    room: tuple[int, ...]
    wanted: dict[tuple[int, ...], int]


def read(file: Path) -> Instance:
    """Raises ValueError where the file is not of the format."""
    numbers = [int(word) for word in file.read_text(encoding="utf-8").split()]
    axes = numbers[0]
    room, types = tuple(numbers[1 : 1 + axes]), numbers[1 + axes]
    rest = numbers[2 + axes :]
    if len(rest) != types * (axes + 1):
        raise ValueError(f"{file}: {types} types of {axes} dimensions need more or fewer numbers")
    wanted: Counter[tuple[int, ...]] = Counter()
    for start in range(0, len(rest), axes + 1):
        wanted[tuple(rest[start : start + axes])] += rest[start + axes]
    return Instance(file.name, room, dict(wanted))


def told(name: str) -> Callable[[Packing], None]:
    """Shows every better packing and bound on stderr."""
    started = time.process_time()

    def tell(found: Packing) -> None:
        seconds = time.process_time() - started
        line = f"# {name}: {found.gpus} bins, at least {found.bound}, {seconds:.1f} s of CPU"
        print(line, file=sys.stderr, flush=True)

    return tell


def packed(instance: Instance, effort: int) -> tuple[Packing, int]:
    """The packing, and what best-fit takes; raises AssertionError for one that does not hold."""
    sizes = list(instance.wanted)
    packer = Packer(instance.room, sizes)
    wanted = {number: instance.wanted[size] for number, size in enumerate(sizes)}
    found = pack(packer, wanted, effort=effort, told=told(instance.name))
    held: Counter[int] = Counter()
    for counts, times in found.filled:
        for axis, room in enumerate(instance.room):
            assert sum(sizes[n][axis] * count for n, count in counts) <= room
        held.update({n: count * times for n, count in counts})
    assert all(held[n] >= count for n, count in wanted.items())
    return found, best_fit(packer, wanted).total()


def row(file: Path, effort: int) -> dict[str, object]:
    """One instance, and what is known of it."""
    instance = read(file)
    started = time.process_time()
    found, greedy = packed(instance, effort)
    seconds = time.process_time() - started
    return {
        "instance": instance.name,
        "dimensions": len(instance.room),
        "items": sum(instance.wanted.values()),
        "bins": found.gpus,
        "bound": found.bound,
        "gap_percent": round(100 * (found.gpus - found.bound) / found.bound, 3),
        "cpu_s": round(seconds, 2),
        "best_fit": greedy,
        **_known(file),
    }


def _known(file: Path) -> dict[str, str]:
    values = file.parent / "known_values.csv"
    if not values.exists():
        return {}
    with values.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            if line["file"] == file.name:
                return {name: line[name] for name in KNOWN}
    return {}


def main() -> None:
    """Read the files from the command line and print rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--effort", type=int, default=EFFORT, help="of the search after the bound")
    asked = parser.parse_args()
    files = [
        f for one in asked.files for f in (sorted(one.glob("*.vbp")) if one.is_dir() else [one])
    ]
    started = time.process_time()
    packed(Instance("", (1, 1), {(1, 0): 1, (0, 1): 2}), 1)
    print(f"# ready after {time.process_time() - started:.1f} s of CPU", file=sys.stderr)
    out = csv.DictWriter(sys.stdout, (*FIELDS, *KNOWN), restval="", lineterminator="\n")
    out.writeheader()
    for file in files:
        out.writerow(row(file, asked.effort))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
