"""Nights as a picture: price by day above, moves by night below, a colour for each policy.

``python -m scripts.bench.nights_chart NIGHTS.csv > NIGHTS.svg``
"""

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence

from optimizer.report.chart import ticks

WIDTH, LEFT, RIGHT, GAP = 720, 64, 130, 46
PANELS = ((30, 220), (266, 140))  # top and height
COLOURS = {"never": "#888888", "greedy": "#d95f02", "nightly": "#1b6ca8", "clairvoyant": "#2e8b57"}
DASHED = {"clairvoyant"}  # lies on the nightly line where that reaches it

Rows = Sequence[Mapping[str, str]]


def picture(rows: Rows) -> str:
    """The SVG of both panels."""
    days = sorted({int(row["day"]) for row in rows})
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 440" '
        'font-family="sans-serif" font-size="12" fill="#333333">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    shown = [
        ("price_per_hour", "price per hour", True),
        ("moves", "copies started that night", False),
    ]
    for (top, height), (field, title, line) in zip(PANELS, shown, strict=True):
        parts += _panel(rows, days, field, title, top, height, line=line)
    return "\n".join([*parts, "</svg>"])


def _panel(
    rows: Rows, days: Sequence[int], field: str, title: str, top: int, height: int, *, line: bool
) -> Iterator[str]:
    values = [float(row[field]) for row in rows]
    scale = ticks(min(values) if line else 0.0, max(values))
    low, high = min(scale), max(scale)
    bottom = top + height
    step = (WIDTH - LEFT - RIGHT) / len(days)

    def y(value: float) -> float:
        return bottom - height * (value - low) / (high - low)

    yield f'<text x="{LEFT}" y="{top - 10}" font-weight="bold">{title}</text>'
    for tick in scale:
        at, end = f"{y(tick):.1f}", WIDTH - RIGHT
        yield f'<line x1="{LEFT}" x2="{end}" y1="{at}" y2="{at}" stroke="#e2e2e2"/>'
        yield f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for i, day in enumerate(days):
        x = LEFT + step * (i + 0.5)
        yield f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">day {day + 1}</text>'
    for number, (policy, colour) in enumerate(COLOURS.items()):
        mine = [float(r[field]) for r in rows if r["policy"] == policy]
        if line:
            yield from _line(mine, policy, colour, step, y)
            x, at = WIDTH - RIGHT + 12, top + 16 + 22 * number
            yield f'<rect x="{x}" y="{at - 9}" width="12" height="12" fill="{colour}"/>'
            yield f'<text x="{x + 18}" y="{at + 2}">{policy}</text>'
            continue
        width = step * 0.8 / len(COLOURS)
        for i, value in enumerate(mine):
            x = LEFT + step * (i + 0.1) + width * number
            told = f"<title>{policy}, day {i + 1}: {value:g}</title>"
            yield (
                f'<rect x="{x:.1f}" y="{y(value):.1f}" width="{width:.1f}" '
                f'height="{bottom - y(value):.1f}" fill="{colour}">{told}</rect>'
            )


def _line(mine, policy, colour, step, y) -> Iterator[str]:  # type: ignore[no-untyped-def]
    points = [(LEFT + step * (i + 0.5), y(value)) for i, value in enumerate(mine)]
    path = " ".join(f"{x:.1f},{at:.1f}" for x, at in points)
    dash = ' stroke-dasharray="6 5"' if policy in DASHED else ""
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"{dash}/>'
    for i, ((x, at), value) in enumerate(zip(points, mine, strict=True)):
        told = f"<title>{policy}, day {i + 1}: {value:,.2f}</title>"
        yield f'<circle cx="{x:.1f}" cy="{at:.1f}" r="4" fill="{colour}">{told}</circle>'


def main() -> None:
    """Read the rows that ``nights --csv`` wrote, print the picture."""
    with open(sys.argv[1]) as file:
        print(picture(list(csv.DictReader(file))))


if __name__ == "__main__":
    main()
