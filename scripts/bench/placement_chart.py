"""Placement as a picture: gap by fleet size, price over the bound and unmet demand of all.

``python -m scripts.bench.placement_chart PLACEMENT.csv > PLACEMENT.svg``. A column for each load, a
dot for each seed; hollow where it leaves more demand unmet, so that its price is not for the same
job. Rows with rules, which have no baselines, are left out.
"""

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence

from optimizer.report.chart import ticks

WIDTH, LEFT, RIGHT, GAP = 820, 64, 120, 52
PANELS = ((44, 130), (224, 150), (424, 150))  # top and height
COLOURS = {
    "fleetslice": "#1b6ca8", "best_fit": "#d95f02", "ffd": "#888888", "balanced": "#2e8b57",
    "naive": "#b03a7a",
}  # fmt: skip
SHOWN = ("gap of the price, %", "price over the bound, %", "unmet demand, % of all")

Row = Mapping[str, str]


def picture(rows: Sequence[Row]) -> str:
    """The SVG of all panels."""
    plain = [row for row in rows if row["family"].count("-") == 2]
    loads = sorted({_load(row) for row in plain})
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 620" '
        'font-family="sans-serif" font-size="12" fill="#333333">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    width = (WIDTH - LEFT - RIGHT - GAP * (len(loads) - 1)) / len(loads)
    sizes = sorted({int(row["gpus"]) for row in plain})
    for number, (title, (top, height)) in enumerate(zip(SHOWN, PANELS, strict=True)):
        scale = ticks(0.0, max(value for row in plain for _, value in _points(row, number)))
        for column, load in enumerate(loads):
            left = LEFT + column * (width + GAP)
            told = f"{title} (load {load})"
            parts.append(f'<text x="{left:.0f}" y="{top - 12}" font-weight="bold">{told}</text>')
            parts += _axes(left, top, width, height, scale, sizes)
            mine = [row for row in plain if _load(row) == load]
            parts += _dots(mine, number, (left, top, width, height), max(scale), sizes)
    parts += _legend()
    return "\n".join([*parts, "</svg>"])


def _load(row: Row) -> str:
    return row["family"].split("-")[1]


def _points(row: Row, panel: int) -> Iterator[tuple[str, float]]:
    """Who, and the value the panel shows of it, where the row has one."""
    if panel == 0:
        yield "fleetslice", float(row["gap_percent"])
        return
    for who in COLOURS:
        prefix = "" if who == "fleetslice" else f"{who}_"
        if not row.get(f"{prefix}price"):
            continue
        if panel == 1:
            yield who, 100 * (float(row[f"{prefix}price"]) / float(row["price_bound"]) - 1)
        else:
            yield who, float(row[f"{prefix}unmet_ppm"]) / 1e4 / int(row["deployments"])


def _serves_less(row: Row, who: str) -> bool:
    return who != "fleetslice" and float(row[f"{who}_unmet_ppm"]) > float(row["unmet_ppm"])


def _axes(
    left: float, top: int, width: float, height: int, scale: Sequence[float], sizes: Sequence[int]
) -> Iterator[str]:
    for tick in scale:
        at = top + height * (1 - tick / max(scale))
        yield (
            f'<line x1="{left:.0f}" x2="{left + width:.0f}" y1="{at:.1f}" y2="{at:.1f}" '
            'stroke="#e2e2e2"/>'
        )
        yield f'<text x="{left - 8:.0f}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for number, size in enumerate(sizes):
        x = left + width * (number + 0.5) / len(sizes)
        yield f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{size:,}</text>'


def _dots(
    rows: Sequence[Row],
    panel: int,
    box: tuple[float, float, float, float],
    most: float,
    sizes: Sequence[int],
) -> Iterator[str]:
    left, top, width, height = box
    each = width / len(sizes)
    for row in rows:
        for who, value in _points(row, panel):
            aside = 0.5 if panel == 0 else (list(COLOURS).index(who) + 1) / (len(COLOURS) + 1)
            x = left + each * (sizes.index(int(row["gpus"])) + aside)
            y = top + height * (1 - max(0.0, value) / most)
            told = f"<title>{who}, {row['family']}: {value:.3g}</title>"
            hollow = panel == 1 and _serves_less(row, who)
            fill = "none" if hollow else COLOURS[who]
            yield (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" fill-opacity="0.7" '
                f'stroke="{COLOURS[who]}">{told}</circle>'
            )


def _legend() -> Iterator[str]:
    x, top = WIDTH - RIGHT + 16, PANELS[1][0]
    for number, (who, colour) in enumerate(COLOURS.items()):
        at = top + 16 + 22 * number
        yield f'<rect x="{x}" y="{at - 9}" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{x + 18}" y="{at + 2}">{who.replace("_", "-")}</text>'


def main() -> None:
    """Read the rows that ``placement`` printed, print the picture."""
    with open(sys.argv[1]) as file:
        print(picture(list(csv.DictReader(file))))


if __name__ == "__main__":
    main()
