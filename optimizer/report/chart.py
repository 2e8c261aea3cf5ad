"""A line through points, as the coordinates of a small picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 520, 200
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 26, 34


@dataclass(frozen=True, slots=True)
class Dot:
    """A point in the picture's pixels; ``mark`` is ``good``, ``bad`` or ``best``."""

    x: float
    y: float
    told: str
    mark: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What the page draws: dots, lines as points of a polyline, and where the axes are labelled.

    ``floor`` is a second line below, such as a bound; empty where there is none.
    """

    dots: tuple[Dot, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_name: str
    y_name: str
    line: str
    floor: str = ""


def chart(
    points: Sequence[tuple[float, float, str, str]],
    x_name: str,
    y_name: str,
    *,
    from_zero: bool = True,
    line: Sequence[tuple[float, float]] | None = None,
    floor: Sequence[tuple[float, float]] = (),
) -> Chart:
    """``points``: x, y, what a hover says, and the mark; ``from_zero`` is about the y axis.

    ``line``: x and y of the line, if not from point to point; ``floor``: of a second one.
    """
    through = [(x, y) for x, y, _, _ in points]
    xs, ys = zip(*through, *floor, strict=True)
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(0.0 if from_zero else min(ys), max(ys))

    def x_at(value: float) -> float:
        low, high = min(x_ticks[0], *xs), max(x_ticks[-1], *xs)
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / ((high - low) or 1), 1)

    def y_at(value: float) -> float:
        low, high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)
        part = (value - low) / ((high - low) or 1)
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part, 1)

    return Chart(
        tuple(Dot(x_at(x), y_at(y), told, mark) for x, y, told, mark in points),
        tuple((x_at(x), f"{x:,g}") for x in x_ticks),
        tuple((y_at(y), f"{y:,g}") for y in y_ticks),
        x_name,
        y_name,
        *(
            " ".join(f"{x_at(x):g},{y_at(y):g}" for x, y in drawn)
            for drawn in (through if line is None else line, floor)
        ),
    )


def stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same line with each value held until the next one comes."""
    held = [(x, y) for (x, _), (_, y) in zip(points[1:], points, strict=False)]
    return sorted([*held, *points], key=lambda p: p[0])


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values from ``low`` or below to ``high`` or above, about so many."""
    span = (high - low) or abs(high) or 1.0
    raw = span / about
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]
