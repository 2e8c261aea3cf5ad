"""The terminal report as golden files; FLEETSLICE_UPDATE_GOLDEN=1 writes them anew."""

import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import plans
from builders import deployment, fleet, node, problem
from optimizer.domain.outcome import Objective, Outcome, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.plan import Move
from optimizer.report import (
    diff,
    markdown,
    render_diff,
    render_faults,
    render_gpus,
    render_html,
    render_plan,
    render_profiles,
    render_rebalance,
    render_size,
    render_violations,
    render_whatif,
    status,
)
from optimizer.report.changes import alike
from optimizer.verify import Violation

GOLDEN = Path(__file__).parent / "golden"
ANSI = re.compile(r"\x1b\[([\d;]*)m")

Draw = Callable[[Console, bool], None]


def printed(draw: Draw, width: int = 80, ascii: bool = False, **terminal: object) -> str:
    """What ends up on stdout; a pipe unless ``terminal`` says otherwise."""
    out = io.StringIO()
    settings = {"force_terminal": False, **terminal}
    draw(Console(file=out, width=width, **settings), ascii)
    return out.getvalue()


def stripped(text: str) -> str:
    """Without the spaces that tables pad their lines with."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def scratch(console: Console, ascii: bool) -> None:
    render_plan(plans.small_plan(), console, ascii=ascii)


def scratch_summary(console: Console, ascii: bool) -> None:
    render_plan(plans.small_plan(), console, ascii=ascii, summary=True)


def rebalance(console: Console, ascii: bool) -> None:
    render_rebalance(plans.rebalanced_plan(), console, ascii=ascii)


def rebalanced(console: Console, ascii: bool) -> None:
    render_plan(plans.rebalanced_plan(), console, ascii=ascii)


def size(console: Console, ascii: bool) -> None:
    render_size(plans.SIZE, console, ascii=ascii)


def whatif(console: Console, ascii: bool) -> None:
    render_whatif(plans.WHATIF, console, ascii=ascii)


def differences(console: Console, ascii: bool) -> None:
    found = diff(plans.small_current(), plans.rebalanced_plan())
    render_diff(found, console, ascii=ascii)


def folded(console: Console, ascii: bool) -> None:
    render_plan(plans.large_plan(), console, ascii=ascii)


EVERY = (scratch, scratch_summary, rebalance, rebalanced, size, whatif, differences, folded)


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("draw", EVERY, ids=lambda d: d.__name__)
def test_golden(draw: Draw, width: int) -> None:
    compare(f"{draw.__name__}-{width}.txt", printed(draw, width))


@pytest.mark.parametrize("draw", [scratch, rebalance, size], ids=lambda d: d.__name__)
def test_golden_in_plain_ascii(draw: Draw) -> None:
    text = printed(draw, ascii=True)
    assert text.isascii()
    compare(f"{draw.__name__}-ascii.txt", text)


TERMINALS = {
    "dumb": {"_environ": {"TERM": "dumb"}},
    "nocolor": {"_environ": {"TERM": "xterm-256color", "NO_COLOR": "1"}},
}


@pytest.mark.parametrize("name", TERMINALS)
@pytest.mark.parametrize("draw", [scratch, rebalance], ids=lambda d: d.__name__)
def test_golden_on_plain_terminals(draw: Draw, name: str) -> None:
    text = printed(draw, force_terminal=True, **TERMINALS[name])
    compare(f"{draw.__name__}-{name}.txt", text.replace("\x1b", "<ESC>"))


def test_priorities_that_say_the_same_share_a_line() -> None:
    told = [Objective("unmet", 0, 0, priority=p) for p in (90, 50, 0)]
    told.append(Objective("unmet", 400_000, 400_000, priority=-5))
    outcome = Outcome(Termination.OPTIMAL, objectives=tuple(told))
    plan = plans.plan_of(plans.small_problem(), plans.small_placement(), outcome)
    names = [level.name for level in status.levels(plan)]
    assert names == ["unmet demand, priorities 90 to 0", "unmet demand, priority -5"]


def test_starts_beside_what_runs_are_told_one_by_one() -> None:
    whole = plans.small_placement()
    now = replace(whole, replicas=whole.replicas[1:])
    outcome = Outcome(Termination.OPTIMAL, objectives=plans.objectives())
    plan = plans.plan_of(plans.small_problem(now), whole, outcome)
    assert [m.kind for m in plan.moves] == ["start"]
    assert ", now " in status.totals(plan)
    text = printed(lambda console, ascii: render_rebalance(plan, console, ascii=ascii))
    assert "code-assist/0  start  -     h100-02/0" in text
    assert "0:00" in text


def test_the_price_now_counts_what_runs_before_the_moves() -> None:
    plan = plans.rebalanced_plan()
    price = {g.id: g.price_micros for g in plan.gpus}
    before = {g for r in plans.small_current().replicas for g in r.gpus}
    assert {g.id for g in status.gpus_before(plan)} == before
    assert f"now {sum(price[g] for g in before) / 1e6:.2f} USD/h" in status.totals(plan)
    assert "now" not in status.totals(plans.small_plan())


def test_moves_that_read_the_same_share_a_line() -> None:
    def move(number: int, start: int, to: str = "n1/0") -> Move:
        name = f"chat/{number}"
        before = plans.at(name, "n0/0", mig=f"1g.10gb@{start}")
        return Move(name, "move", before, plans.at(name, to, mig="1g.10gb@6"), 1024, "frees n0/0")

    told = alike([move(0, 0), move(1, 1), move(2, 2, "n2/0"), move(3, 3)])
    assert [(one.replicas, one.count, one.load) for one in told] == [
        ("chat/0,1,3", 3, "3"),
        ("chat/2", 1, "1"),
    ]
    assert [one.before for one in told] == ["n0/0 1g.10gb", "n0/0 1g.10gb@2"]


def test_what_stays_undone_is_said_first_and_not_counted() -> None:
    plan = plans.rebalanced_plan()
    first = next(m for m in plan.moves if m.kind == "move")
    moved = sum(m.kind == "move" for m in plan.moves)
    left = replace(plan, left=(first.replica,))
    text = printed(lambda console, ascii: render_rebalance(left, console, ascii=ascii), 160)
    assert "1 change has no safe order and will not be done" in text.split("\n\n")[0]
    assert f"{moved - 1} move" in text
    assert "; 1 change left undone" in " ".join(text.split())
    assert "move, left" in text


def compare(name: str, text: str) -> None:
    """Against the golden file of that name."""
    path = GOLDEN / name
    if os.environ.get("FLEETSLICE_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(stripped(text), encoding="utf-8")
    assert stripped(text) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 100, 132, 160, 300])
@pytest.mark.parametrize("draw", EVERY, ids=lambda d: d.__name__)
def test_no_line_is_wider_than_the_terminal(draw: Draw, width: int) -> None:
    lines = printed(draw, width).splitlines()
    assert max(len(line) for line in lines) <= width


@pytest.mark.parametrize("draw", EVERY, ids=lambda d: d.__name__)
def test_a_pipe_gets_no_escape_codes(draw: Draw) -> None:
    assert "\x1b" not in printed(draw)


def test_colours_only_add_to_the_text() -> None:
    coloured = printed(scratch, force_terminal=True, color_system="truecolor")
    assert "48;2;" in coloured
    bare, plain = ANSI.sub("", coloured), printed(scratch)
    # The legend of colours is all that a terminal says more.
    assert bare.split("\n■")[0] == plain.split("\n░░░ free")[0]
    assert bare.split("What runs where")[1] == plain.split("What runs where")[1]


def test_no_color_is_honoured() -> None:
    text = printed(scratch, force_terminal=True, color_system="truecolor", no_color=True)
    codes = {code for match in ANSI.findall(text) for code in match.split(";")}
    assert not codes & {"38", "48", *map(str, range(30, 38)), *map(str, range(90, 98))}


def test_a_summary_is_at_most_ten_lines() -> None:
    for draw in (scratch_summary, rebalance_summary):
        assert len(printed(draw).splitlines()) <= 10


def test_a_summary_of_a_clash_tells_the_ways_out_and_no_prices() -> None:
    notes = tuple(f"a plan is possible without rule {n}" for n in range(3))
    rules = tuple(f"rule {n}" for n in range(9))
    outcome = Outcome(Termination.INFEASIBLE, conflict=rules, notes=notes)
    plan = plans.plan_of(plans.small_problem(), Placement(), outcome)
    text = printed(lambda console, ascii: render_plan(plan, console, ascii=ascii, summary=True))
    assert text.splitlines()[-2:] == [f"Note: {note}" for note in notes[:2]]
    assert len(text.splitlines()) <= 10
    assert "by tenant" not in text


def rebalance_summary(console: Console, ascii: bool) -> None:
    render_rebalance(plans.rebalanced_plan(), console, ascii=ascii, summary=True)


def test_a_plan_that_was_not_found_is_never_called_impossible() -> None:
    outcome = Outcome(Termination.NOTHING_FOUND, stopped_by="time_limit")
    plan = plans.plan_of(plans.small_problem(), Placement(), outcome)
    text = printed(lambda console, ascii: render_plan(plan, console, ascii=ascii))
    assert "not known" in text
    assert "infeasible" not in text


def test_an_infeasible_plan_names_the_rules() -> None:
    outcome = Outcome(Termination.INFEASIBLE, conflict=("pin of chat", "cordon of n0/0"))
    plan = plans.plan_of(plans.small_problem(), Placement(), outcome)
    text = printed(lambda console, ascii: render_plan(plan, console, ascii=ascii))
    assert "infeasible" in text
    assert "pin of chat" in text


def test_a_limit_is_never_called_optimal() -> None:
    outcome = Outcome(
        Termination.LIMIT, objectives=plans.objectives(gap=True), stopped_by="time_limit"
    )
    plan = plans.plan_of(plans.small_problem(), plans.small_placement(), outcome)
    text = printed(lambda console, ascii: render_plan(plan, console, ascii=ascii))
    first = text.splitlines()[0]
    assert "above the optimum" in first
    assert "proved optimal" not in first


def test_nothing_to_move_is_said() -> None:
    placement = plans.small_placement()
    plan = plans.plan_of(plans.small_problem(placement), placement)
    text = printed(lambda console, ascii: render_rebalance(plan, console, ascii=ascii))
    assert "Nothing to move" in text


def test_an_empty_fleet_and_no_deployments_still_print() -> None:
    plan = plans.plan_of(problem(fleet(node()), []), Placement())
    text = printed(lambda console, ascii: render_plan(plan, console, ascii=ascii))
    assert "0 of 1 GPU" in text


def test_without_prices_gpus_are_counted() -> None:
    asked = problem(fleet(node("n0", gpus=2, price=None)), [deployment("chat", replicas=1)])
    plan = plans.plan_of(asked, Placement((plans.at("chat/0", "n0/1"),)))
    text = printed(lambda console, ascii: render_plan(plan, console, ascii=ascii))
    assert "1 of 2 GPUs used" in text
    assert "USD" not in text


def test_a_missed_slo_is_marked() -> None:
    plan = plans.small_plan()
    slow = [
        replace(d, predicted=plans.predicted(900, 31)) if d.name == "support-chat" else d
        for d in plan.deployments
    ]
    plan = replace(plan, deployments=tuple(slow))
    text = printed(lambda console, ascii: render_plan(plan, console, ascii=ascii))
    assert "900/800 !" in text


def test_faults_are_not_wrapped() -> None:
    fault = "clusters/a.yaml:18:10: nodes[3].gpu: no product; " + "did you mean " * 12
    text = printed(lambda console, ascii: render_faults([fault], console, ascii=ascii))
    assert text.splitlines()[0] == fault.rstrip() or text.splitlines()[0] == fault


def test_violations_and_their_absence() -> None:
    broken = [Violation("spread", "chat", "3 replicas in node n0, at most 2")]
    text = printed(lambda console, ascii: render_violations(broken, console, ascii=ascii))
    assert "spread" in text
    assert "1 violation" in text
    assert "every rule holds" in printed(lambda c, a: render_violations([], c, ascii=a))


def test_catalogue_lists() -> None:
    text = printed(lambda c, a: render_gpus([plans.H100, plans.L40S], c, ascii=a))
    assert "h100-80gb-sxm" in text
    text = printed(lambda c, a: render_profiles([plans.H100, plans.L40S], c, ascii=a))
    assert "3g.40gb" in text
    assert "l40s" not in text


def test_moves_without_a_safe_order_are_named_everywhere() -> None:
    plan = replace(plans.rebalanced_plan(), left=("reranker/1",))
    told = "Left as they are, since no safe order was found: reranker/1"
    assert told in printed(lambda console, ascii: render_rebalance(plan, console, ascii=ascii))
    assert told in markdown(plan)
    assert told in render_html(plan)
