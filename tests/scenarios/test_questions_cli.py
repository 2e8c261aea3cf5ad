"""The commands that ask scenarios, as a user meets them; serial, on a fleet of three nodes."""

import json
import sys
from pathlib import Path

import pytest

from optimizer.cli.app import run

FLEET = """\
kind: Fleet
version: 1
name: toy
nodes:
  - {name: "big-{1..2}", gpu: a100-80gb-sxm, gpus: 2, rack: r1, price_per_gpu_hour: 2.0}
  - {name: small-1, gpu: l40s, gpus: 2, rack: r2, price_per_gpu_hour: 0.5}
"""
WORKLOADS = """\
kind: Workloads
version: 1
name: toy
deployments:
  - {name: slices, tenant: acme, needs: {mig_profile: 3g.40gb}, replicas: {min: 2}}
  - {name: vision, tenant: globex, needs: {memory_gib: 20},
     allow: {gpus: [l40s]}, spread: {node: 2}}
"""
CUSTOMER = """\
kind: Workloads
version: 1
name: customer
deployments:
  - {name: new, tenant: initech, needs: {gpus: 1}, allow: {gpus: [a100-80gb-sxm]}}
"""
SCENARIOS = """\
kind: Scenarios
version: 1
scenarios:
  - {name: lost, changes: [{lose: {node: small-1}}]}
  - {name: misspelt, changes: [{lose: {node: small-9}}]}
  - {name: dearer, changes: [{price: {gpu: a100-80gb-sxm, by: 2.0}}]}
"""


@pytest.fixture
def fleetslice(tmp_path, monkeypatch, capsys):
    """Runs a command in a folder with the documents; exit code, stdout as JSON."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "fleet": FLEET,
        "workloads": WORKLOADS,
        "customer": CUSTOMER,
        "scenarios": SCENARIOS,
    }.items():
        Path(f"{name}.yaml").write_text(text, encoding="utf-8")

    def called(command: str, *flags: str, output: str = "json"):
        documents = () if command == "report" else ("fleet.yaml", "workloads.yaml")
        effort = () if command in ("verify", "report") else ("--effort", "5")
        argv = [command, *documents, *flags, *effort, "-o", output]
        monkeypatch.setattr(sys, "argv", ["fleetslice", *argv])
        code = run()
        said = capsys.readouterr()
        return code, json.loads(said.out) if output == "json" and said.out else said.out, said.err

    return called


def test_whatif_answers_what_it_can_and_exits_with_6(fleetslice):
    code, data, _ = fleetslice("whatif", "scenarios.yaml", "--workers", "0")
    assert code == 6
    assert [row["name"] for row in data["scenarios"]] == ["lost", "misspelt", "dearer"]
    rows = {row["name"]: row for row in data["scenarios"]}
    assert data["baseline"]["price_per_hour"] == 2.5
    assert rows["lost"]["unmet"][0]["deployment"] == "vision"
    assert rows["dearer"]["differences"] == ["price up 2.00 USD/h"]
    assert 'did you mean "small-1"?' in rows["misspelt"]["failed"]


def test_whatif_by_flags_and_as_a_table(fleetslice):
    flags = ("--workers", "0", "--lose-node", "big-1", "--scale-demand", "tenant:acme=2")
    code, text, _ = fleetslice("whatif", *flags, output="table")
    assert code == 0
    assert "lose big-1, acme x2" in text
    assert "USD/h" in text


def test_an_interrupted_run_asks_only_what_is_missing(fleetslice):
    flags = ("scenarios.yaml", "--workers", "0", "--out", "answers.jsonl")
    _, whole, _ = fleetslice("whatif", *flags)
    answers = Path("answers.jsonl")
    first, *others = answers.read_text(encoding="utf-8").splitlines(keepends=True)
    answers.write_text(first + others[0][:50], encoding="utf-8")  # ended in the middle of a line
    _, again, told = fleetslice("whatif", *flags)
    assert "1 answer of an earlier run used again, from answers.jsonl" in told
    assert again == whole


def test_a_wrong_flag_is_wrong_usage(fleetslice):
    code, _, told = fleetslice("whatif", "--lose-rack", "r7")
    assert code == 2
    assert told.startswith('the command line: scenarios[0].changes[0].lose.rack: no rack "r7"')


def test_quote(fleetslice):
    code, data, _ = fleetslice("quote", "--add", "customer.yaml")
    assert code == 0
    assert (data["price_per_hour"], data["price_per_month"], data["proved"]) == (2.0, 1460.0, True)


def test_a_quote_is_the_difference_of_two_proved_plans(fleetslice):
    """Planned by hand: once as it is, once with the customer among the workloads."""
    customer = CUSTOMER.replace("{gpus: 1}", "{mig_profile: 3g.40gb}, replicas: {min: 3}")
    Path("customer.yaml").write_text(customer, encoding="utf-8")
    code, quote, _ = fleetslice("quote", "--add", "customer.yaml")
    assert (code, quote["proved"]) == (0, True)
    _, before, _ = fleetslice("plan")
    _, after, _ = fleetslice("plan", "customer.yaml")
    assert before["outcome"]["status"] == after["outcome"]["status"] == "optimal"
    assert quote["price_per_hour"] == after["price_per_hour"] - before["price_per_hour"] == 4.0


def test_a_customer_whose_rules_clash_is_told_why(fleetslice):
    clashing = CUSTOMER.replace(
        "needs: {gpus: 1}",
        "demand: {requests_per_second: 1}, pin: [big-1], survive: node,\n"
        "     measured: [{gpu: a100-80gb-sxm, gpus: 1, requests_per_second: 9}]",
    )
    Path("customer.yaml").write_text(clashing, encoding="utf-8")
    code, quote, _ = fleetslice("quote", "--add", "customer.yaml")
    assert (code, quote["fits"], quote["price_per_hour"]) == (3, False, None)
    assert quote["clash"] == ["pin: new", "survive: new"]
    assert quote["fix"] in ("without pin: new", "without survive: new")


@pytest.mark.parametrize("node", ["big-1", "small-1"])
def test_an_impossible_scenario_names_the_clash_and_a_fix(fleetslice, node):
    """Each fix is tried: with it there is a plan, with every rule of the clash there is none.

    Away from small-1 there are only GPUs of another product.
    """
    Path("workloads.yaml").write_text(WEB, encoding="utf-8")
    pinned = ("--set", f'deployments.web.pin=["{node}"]')
    code, data, _ = fleetslice("whatif", *pinned, "--workers", "0")
    (row,) = data["scenarios"]
    assert (code, row["status"]) == (0, "infeasible")
    assert row["clash"] == ["pin: web", "survive: web"]
    assert row["fixes"] == ["without pin: web", "without survive: web"]
    assert row["differences"] == [
        "hard rules clash: pin: web, survive: web; "
        "a plan is possible without pin: web or without survive: web"
    ]
    freed = ("--set", "deployments.web.survive=null")
    _, data, _ = fleetslice("whatif", *pinned, *freed, "--workers", "0")
    assert data["scenarios"][0]["unmet"] == []


def test_unmet_demand_names_the_fix(fleetslice):
    flags = ("--scale-demand", "tenant:acme=5", "--workers", "0")
    _, data, _ = fleetslice("whatif", *flags)
    (row,) = data["scenarios"]
    assert row["clash"] == ["demand_met: slices"]
    assert row["fix"].startswith("slices: 1 more a100-80gb-sxm")
    fleet = FLEET.replace("gpus: 2, rack: r1", "gpus: 3, rack: r1")  # one more, and another
    Path("fleet.yaml").write_text(fleet, encoding="utf-8")
    _, data, _ = fleetslice("whatif", *flags)
    assert (data["scenarios"][0]["clash"], data["scenarios"][0]["fix"]) == ([], None)


def test_a_report_refuses_answers_of_another_baseline(fleetslice):
    fleetslice("plan", "--out", "plan.json")
    asked = ("whatif", "--lose-node", "big-1", "--workers", "0")
    fleetslice(*asked, "--baseline", "plan.json", "--out", "answers.jsonl")
    Path("fleet.yaml").write_text(FLEET.replace("2.0", "1.0"), encoding="utf-8")
    fleetslice("plan", "--out", "other.json")
    report = ("--whatif", "answers.jsonl", "-o", "html")
    code, page, _ = fleetslice("report", "plan.json", *report, output="html")
    assert (code, "lose big-1" in page) == (0, True)
    code, _, told = fleetslice("report", "other.json", *report, output="html")
    assert (code, "another baseline" in told) == (2, True)


def test_admit(fleetslice):
    code, data, _ = fleetslice("admit", "--add", "customer.yaml")
    assert (code, data["fits"], data["exact"], data["price_per_hour"]) == (0, True, True, 2.0)
    assert [row["replica"] for row in data["replicas"]] == ["new/0"]
    Path("large.yaml").write_text(CUSTOMER.replace("gpus: 1", "gpus: 4"), encoding="utf-8")
    code, data, _ = fleetslice("admit", "--add", "large.yaml")
    assert (code, data["fits"], data["replicas"]) == (3, False, [])


def test_headroom_brackets_agree_with_plans_by_hand(fleetslice):
    """Served at the lower end, not at the upper one: planned from scratch at both."""
    Path("workloads.yaml").write_text(WEB.replace(" survive: node,", ""), encoding="utf-8")
    flags = ("--most", "20", "--within", "0.05", "--workers", "0")
    code, data, _ = fleetslice("headroom", *flags)
    assert (code, data["proved"]) == (0, True)
    assert 0 < data["breaks"] - data["fits"] <= 0.05
    for factor, exit_code in ((data["fits"], 0), (data["breaks"], 3)):
        grown = WEB.replace(" survive: node,", "").replace("250", f"{250 * factor:.3f}")
        Path("workloads.yaml").write_text(grown, encoding="utf-8")
        assert fleetslice("plan")[0] == exit_code


def test_headroom_of_replicas_that_are_counted(fleetslice):
    flags = ("--tenant", "acme", "--workers", "0", "--within", "0.3")
    code, data, _ = fleetslice("headroom", *flags)
    assert code == 0
    assert data["fits"] <= 4.0 < data["breaks"]  # four GPUs hold eight 3g.40gb
    assert data["breaks"] - data["fits"] <= 0.3
    assert data["proved"]


def test_survive(fleetslice):
    code, data, _ = fleetslice("survive", "--workers", "0")
    assert code == 3
    left = {loss["name"]: len(loss["planned_anew"]["unmet"]) for loss in data["losses"]}
    assert left == {"big-1": 0, "big-2": 0, "small-1": 1, "r1": 1, "r2": 1}


WEB = """\
kind: Workloads
version: 1
deployments:
  - {name: web, demand: {requests_per_second: 250}, survive: node, measured: [
     {gpu: a100-80gb-sxm, mig_profile: 1g.10gb, requests_per_second: 100},
     {gpu: l40s, gpus: 1, requests_per_second: 130}]}
"""


@pytest.mark.parametrize("promised", [True, False])
def test_survive_agrees_with_removing_each_node_by_hand(fleetslice, promised):
    """At once: nothing may move. Anew: the promise is spent, so it is left out by hand too."""
    loose = WEB.replace(" survive: node,", "")
    Path("workloads.yaml").write_text(WEB if promised else loose, encoding="utf-8")
    fleetslice("plan", "--out", "plan.json")
    flags = ("--baseline", "plan.json", "--kind", "node", "--workers", "0")
    code, data, _ = fleetslice("survive", *flags)
    short = {loss["name"]: loss["short_at_once"] for loss in data["losses"]}
    assert list(short) == ["big-1", "big-2", "small-1"]
    assert (code, any(short.values())) == ((0, False) if promised else (3, True))
    Path("workloads.yaml").write_text(loose, encoding="utf-8")
    for loss in data["losses"]:
        Path("fleet.yaml").write_text(without(loss["name"]), encoding="utf-8")
        held, still, _ = fleetslice("rebalance", "--state", "plan.json", "--max-moves", "0")
        assert short[loss["name"]] == [
            {n: one[n] for n in ("deployment", "missing_rps", "missing_replicas")}
            for one in still["unmet"]
        ]
        assert held == (3 if short[loss["name"]] else 0)
        _, anew, _ = fleetslice("plan")
        assert loss["planned_anew"]["price_per_hour"] == anew["price_per_hour"]
        assert loss["planned_anew"]["unmet"] == anew["unmet"] == []


def without(node):
    """The fleet without a node, as one would edit it."""
    other = {"big-1": "2..2", "big-2": "1..1"}
    if node in other:
        return FLEET.replace("1..2", other[node])
    return "".join(line for line in FLEET.splitlines(True) if node not in line)


def test_survive_tells_kept_and_broken_promises(fleetslice):
    a100 = WEB.replace(",\n     {gpu: l40s, gpus: 1, requests_per_second: 130}", "")
    Path("workloads.yaml").write_text(a100, encoding="utf-8")
    code, text, _ = fleetslice("survive", "--workers", "0", output="table")
    assert code == 3  # one rack holds both big nodes
    told = " ".join(text.split())
    assert "Whichever of 3 nodes is lost, nobody is short." in told
    assert "Every deployment outlives what its survive rule says" in told
    code, _, told = fleetslice("survive", "--kind", "shelf", "--workers", "0")
    assert (code, "--kind: no kind" in told) == (2, True)


def test_retired_nodes_are_not_missed_by_a_plan_by_hand(fleetslice):
    code, data, _ = fleetslice("retire", "--workers", "0")
    assert code == 0
    (gone,) = data["nodes"]
    assert gone.startswith("big-")
    assert {row["node"] for row in data["needed"]} | {gone} == {"big-1", "big-2", "small-1"}
    assert data["price_per_hour"] == 4.0  # its two GPUs
    Path("fleet.yaml").write_text(without(gone), encoding="utf-8")
    assert fleetslice("plan")[0] == 0
    for row in data["needed"]:
        code, lost, _ = fleetslice("whatif", "--lose-node", row["node"], "--workers", "0")
        assert lost["scenarios"][0]["unmet"]


def test_sensitivity_is_the_difference_to_a_plan_without_the_rule(fleetslice):
    strict = WEB.replace("survive: node", "survive: node, spread: {node: 3}, pin: [big-1, big-2]")
    Path("workloads.yaml").write_text(strict, encoding="utf-8")
    _, before, _ = fleetslice("plan")
    code, data, _ = fleetslice("sensitivity", "--workers", "0")
    assert code == 0
    rules = {
        "survive": "survive: node, ",
        "spread": "spread: {node: 3}, ",
        "pin": ", pin: [big-1, big-2]",
    }
    assert {(r["deployment"], r["rule"]) for r in data["rules"]} == {("web", r) for r in rules}
    for row in data["rules"]:
        Path("workloads.yaml").write_text(strict.replace(rules[row["rule"]], ""), encoding="utf-8")
        _, after, _ = fleetslice("plan")
        assert row["proved"]
        assert row["price_per_hour"] == before["price_per_hour"] - after["price_per_hour"]


def test_buy(fleetslice):
    offers = ("--offer", "1xa100-80gb-sxm=3", "--offer", "4xa100-80gb-sxm=7", "--workers", "0")
    code, data, _ = fleetslice("buy", "--scale-demand", "tenant:acme=5", *offers)
    assert code == 0
    assert (data["nodes"], data["price_per_hour"]) == ({"new-1xa100-80gb-sxm": 1}, 3.0)
    assert data["proved"]


PRICES = """\
kind: Prices
version: 1
offers:
  - {name: a100-1, gpu: a100-80gb-sxm, gpus: 1, price_per_gpu_hour: 3,
     commitments: [{months: 12, percent: 50}]}
  - {name: a100-4, gpu: a100-80gb-sxm, gpus: 4, price_per_node_hour: 7, nodes: {max: 1}}
gpus: {l40s: 0.25, h100-80gb-sxm: 2}
"""


def test_buy_of_a_price_list(fleetslice):
    """Slices for six GPUs, of which the fleet has four: two nodes of one, or one of four."""
    Path("prices.yaml").write_text(PRICES, encoding="utf-8")
    flags = ("prices.yaml", "--scale-demand", "tenant:acme=6", "--workers", "0")
    code, data, told = fleetslice("buy", *flags)
    assert (code, data["nodes"], data["price_per_hour"]) == (0, {"a100-1": 2}, 6.0)
    assert data["proved"]
    assert "the prices of l40s are those of prices.yaml" in told
    assert "has prices of h100-80gb-sxm, of which the fleet has none" in told
    code, data, _ = fleetslice("buy", *flags, "--months", "12")
    assert (code, data["nodes"], data["price_per_hour"]) == (0, {"a100-1": 2}, 3.0)


def test_what_is_bought_has_its_price_where_no_node_has_one(fleetslice):
    Path("prices.yaml").write_text(PRICES.split("gpus: {l40s")[0], encoding="utf-8")
    bare = FLEET.replace(", price_per_gpu_hour: 2.0", "").replace(", price_per_gpu_hour: 0.5", "")
    Path("fleet.yaml").write_text(bare, encoding="utf-8")
    flags = ("prices.yaml", "--scale-demand", "tenant:acme=6", "--workers", "0")
    code, data, _ = fleetslice("buy", *flags)
    assert (code, data["unit"], data["price_per_hour"]) == (0, "USD", 6.0)
    code, _, told = fleetslice("buy", "prices.yaml", "scenarios.yaml", "--scenario", "misspelt")
    assert (code, 'no node "small-9"' in told) == (2, True)


def test_a_price_list_stands_in_for_the_prices_of_the_fleet(fleetslice):
    Path("prices.yaml").write_text(PRICES, encoding="utf-8")
    code, plan, _ = fleetslice("plan", "prices.yaml", "--out", "plan.json")
    assert (code, plan["price_per_hour"]) == (0, 2.25)
    assert fleetslice("verify", "prices.yaml", "plan.json")[0] == 0
    assert fleetslice("verify", "plan.json")[0] == 7  # by the fleet's own prices it costs more


@pytest.mark.parametrize("offer", ["a100-80gb-sxm=3", "1xa100-80gb=3", "1xa100-80gb-sxm=free"])
def test_a_wrong_offer_is_wrong_usage(fleetslice, offer):
    code, _, told = fleetslice("buy", "--offer", offer, "--workers", "0")
    assert code == 2
    assert "--offer" in told


def test_a_baseline_of_other_documents_is_refused(fleetslice):
    assert fleetslice("plan", "--out", "plan.json")[0] == 0
    fleet = Path("fleet.yaml")
    fleet.write_text(fleet.read_text().replace("0.5", "0.75"), encoding="utf-8")
    code, _, told = fleetslice("survive", "--baseline", "plan.json", "--workers", "0")
    assert code == 5
    assert "make it anew" in told
