"""Scenarios side by side with the baseline."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from optimizer.domain import words
from optimizer.report import compared
from optimizer.report.compared import Row
from optimizer.report.ink import Ink

STYLES = {"optimal": "green", "in gap": "green", "infeasible": "red", "none found": "red"}


def render_whatif(data: Mapping[str, Any], console: Console, *, ascii: bool = False) -> None:
    """The comparison of ``whatif -o json``: a row per scenario, differences from the baseline."""
    ink = Ink.of(console, ascii)
    baseline, scenarios = compared.rows(data)
    unit = str(data.get("unit") or "per hour")
    price = unit if unit in (words.GPUS, "per hour") else f"{unit}/h"
    failed = sum(bool(s.failed) for s in scenarios)
    title = Text(
        f"{words.plural(len(scenarios) - failed, 'scenario')} against the baseline", "bold"
    )
    if failed:
        title.append(f", {failed} failed", "bold red")
    console.print(title)
    if not scenarios:
        console.print(Text("No scenarios: add a document of kind Scenarios.", "dim"))
        return
    for line in _ends_told(scenarios, price):
        console.print(Text(ink.plain(line)))
    _table(console, ink, baseline, scenarios, price)


def _table(console: Console, ink: Ink, baseline: Row, scenarios: Sequence[Row], price: str) -> None:
    wide = ink.width >= 110
    promises = wide and any(s.promise for s in scenarios)
    table = ink.table()
    table.add_column("scenario", max_width=30)
    table.add_column("status", no_wrap=True)
    table.add_column(price, justify="right", no_wrap=True)
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("GPUs", max_width=24 if wide else 16)
    for name in ("unmet", "moves"):
        table.add_column(name, justify="right", no_wrap=True)
    if promises:
        table.add_column("closest to its SLO", max_width=28)
    if wide:
        table.add_column("what is different")
    shown, left_out = compared.ends(scenarios)
    names = compared.short_names([baseline, *shown])
    for one in (baseline, *shown):
        extra = [one.promise] if promises else []
        extra += [_different(one, ink, 1 if left_out else DIFFERENCES)] if wide else []
        table.add_row(*_cells(one, names), *extra, style="bold" if one is baseline else "")
    console.print(table)
    if left_out:
        told = f"The worst first; {words.plural(left_out, 'scenario')} between are left out here."
        console.print(Text(told, "dim"))
        _families(console, ink, scenarios, price)
    for one in shown:
        if one.failed:
            line = Text(f"{ink.glyphs.bad} {one.name}: ", "bold red")
            console.print(line.append(ink.plain(one.failed), "not bold"))
        elif not wide and (one.differences or one.promise):
            line = Text(f"{one.name}: ", "bold")
            close = [ink.plain(f"closest to its SLO: {one.promise}")] if one.promise else []
            most = 1 if left_out else DIFFERENCES
            told = "; ".join([_different(one, ink, most), *close] if one.differences else close)
            console.print(line.append(told, "not bold"))


def _ends_told(scenarios: Sequence[Row], price: str) -> Iterator[str]:
    """The best and the worst, and what lies between; of one scenario its row says all."""
    if len(scenarios) < 2:
        return
    whole = compared.spread("", scenarios)
    if whole.best is not None and whole.middle is not None:
        yield f"best: {_end(whole.best, price)}; in the middle {whole.middle:,.2f} {price}"
    if whole.worst is not None and whole.worst is not whole.best:
        yield f"worst: {_end(whole.worst, price)}"
    short = f"{words.plural(whole.short, 'scenario')} with unmet demand" if whole.short else ""
    without = f"{whole.impossible} without a plan" if whole.impossible else ""
    if short or without:
        yield ", ".join(part for part in (short, without) if part)


def _end(one: Row, price: str) -> str:
    """``growth/3.0, 12.55 USD/h (+151.0 %), 2 deployments unmet``."""
    if one.price is None:
        return f"{one.name}, {one.status}"
    change = f" ({one.change_told})" if one.change_told else ""
    unmet = f", {words.plural(len(one.unmet), 'deployment')} unmet" if one.unmet else ""
    return f"{one.name}, {one.price:,.2f} {price}{change}{unmet}"


def _families(console: Console, ink: Ink, scenarios: Sequence[Row], price: str) -> None:
    """The distribution of each family, where there are too many scenarios to show."""
    spreads = compared.by_family(scenarios)
    if not spreads:
        return
    table = ink.table()
    table.add_column("family", max_width=30)
    for name in ("scenarios", "unmet", "no plan", "failed", "best", "middle", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in spreads:
        ends = (one.best and one.best.price, one.middle, one.worst and one.worst.price)
        counts = (one.scenarios, one.short, one.impossible, one.failed)
        table.add_row(
            one.name,
            *(f"{count:,}" for count in counts),
            *("-" if end is None else f"{end:,.2f}" for end in ends),
        )
    console.print()
    console.print(Text(f"Families, prices in {price}", "bold"))
    console.print(table)


def _cells(one: Row, names: Mapping[str, str]) -> list[Text]:
    if one.failed:
        return [Text(one.name), Text("failed", "red"), *(Text("-") for _ in range(5))]
    change = Text(one.change_told, "dim")
    if one.change is not None and one.change_told != "same":
        change.stylize("not dim red" if one.change > 0 else "not dim green")
    short = Text("-") if one.price is None else Text("none")
    return [
        Text(one.name),
        Text(one.status, STYLES.get(one.status, "yellow")),
        Text("-" if one.price is None else f"{one.price:,.2f}"),
        change,
        Text(_gpus(one, names)),
        Text(str(len(one.unmet)), "red") if one.unmet else short,
        Text(_count(one.moves)),
    ]


def _gpus(one: Row, names: Mapping[str, str]) -> str:
    """``8 h100, 4 l40s``."""
    told = ", ".join(f"{count:,} {names[name]}" for name, count in one.products)
    return told or _count(one.gpus)


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


DIFFERENCES = 3  # of each scenario; of many one


def _different(one: Row, ink: Ink, most: int = DIFFERENCES) -> str:
    told = "; ".join(one.differences[:most])
    more = len(one.differences) - most
    return ink.plain(f"{told}; {more} more" if more > 0 else told)
