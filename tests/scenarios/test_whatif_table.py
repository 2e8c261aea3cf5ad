import io

from rich.console import Console

from optimizer.report import render_whatif
from optimizer.scenarios.compare import _changed


def row(name, price=10.0, unmet=(), **more):
    return {
        "name": name,
        "status": "optimal",
        "price_per_hour": price,
        "bound": price,
        "gpus_used": 4,
        "unmet": list(unmet),
        "moves": 0,
        "failed": None,
        "differences": [],
        **more,
    }


def table(scenarios, width=160):
    out = io.StringIO()
    data = {"unit": "USD", "baseline": row("baseline"), "scenarios": scenarios}
    render_whatif(data, Console(file=out, width=width))
    return out.getvalue()


def names(text):
    return [line.split()[0] for line in text.splitlines() if line.startswith("x")]


def test_few_scenarios_keep_their_order():
    rows = [row(f"x{i}", price=100.0 - i) for i in range(40)]
    assert names(table(rows)) == [r["name"] for r in rows]


def test_of_many_the_failed_the_worst_and_the_best_are_shown():
    rows = [row(f"x{i}", price=float(i)) for i in range(100)]
    rows[50] = row("x50", price=1.0, unmet=[{"deployment": "chat"}])
    rows[60] = {**row("x60", price=None), "failed": "no node n9"}
    text = table(rows)
    worst = ["x60", "x50", *(f"x{i}" for i in range(99, 85, -1))]
    assert names(text) == [*worst, *(f"x{i}" for i in range(14, -1, -1))]
    assert "69 scenarios between are left out" in text


def test_the_promise_that_is_closest_to_breaking_is_shown():
    close = {"deployment": "chat", "what": "tpot_ms", "predicted_ms": 48.62, "promised_ms": 50.0}
    assert "chat TPOT 48.6 of 50 ms" in table([row("x1", tightest_slo=close)])
    assert "SLO" not in table([row("x1")])


def test_products_are_told_by_as_few_words_as_tell_them_apart():
    used = {"a100-40gb-sxm": 1, "a100-80gb-sxm": 2}
    assert "1 a100-40gb, 2 a100-80gb" in table([row("x", gpus_by_product=used)])
    assert "1 a100" in table([row("x", gpus_by_product={"a100-40gb-sxm": 1})])


def test_the_best_and_the_worst_come_first():
    short = row("x2", price=5.0, unmet=[{"deployment": "chat"}])
    rows = [row("x1", price=20.0), short, row("x3", price=12.0), row("x4", price=30.0)]
    lines = table(rows).splitlines()
    assert lines[1] == "best: x3, 12.00 USD/h (+20.0 %); in the middle 16.00 USD/h"
    assert lines[2] == "worst: x2, 5.00 USD/h (-50.0 %), 1 deployment unmet"
    assert lines[3] == "1 scenario with unmet demand"


def test_families_too_large_to_show_are_told_by_their_distribution():
    rows = [row(f"growth/{i}", price=float(i)) for i in range(1, 60)]
    rows[9] = {**row("growth/10", price=None), "status": "infeasible"}
    rows[19] = {**row("growth/20", price=None), "failed": "no node n9"}
    (line,) = [t for t in table(rows).splitlines() if t.startswith("growth ")]
    assert line.split() == ["growth", "59", "0", "1", "1", "1.00", "31.00", "-"]


def test_the_same_ways_in_another_order_are_no_change():
    assert _changed("2 x l40s fp8 + 1 x h100 fp8", "1 x h100 fp8 + 2 x l40s fp8") == ""
    assert _changed("2 x l40s fp8", "1 x l40s fp8 + 1 x h100 fp8") == "-1 x l40s fp8, +1 x h100 fp8"


def test_what_the_effort_ended_says_how_far_the_price_may_be_off():
    short = row("x1", status="limit", price=100.0, bound=97.7, unmet_proved=True)
    unknown = row("x2", status="limit", price=100.0, unmet_proved=False)
    lines = {line.split()[0]: line for line in table([short, unknown]).splitlines() if line}
    assert "in 2.3 %" in lines["x1"]
    assert "not proved" in lines["x2"]
