from dataclasses import replace
from functools import partial
from itertools import product

import pytest

import worlds
from builders import a100, deployment, gpu, node
from optimizer.domain.offer import Commitment, Discount, Offer
from optimizer.domain.placement import node_of
from optimizer.domain.plan import Unmet
from optimizer.domain.scenario import AddNodes, Lose, Scale, Scenario
from optimizer.domain.workload import MeasuredOption, Needs
from optimizer.optimize import Inputs, optimize
from optimizer.scenarios import questions
from optimizer.scenarios.answer import Answer
from optimizer.scenarios.buy import buy
from optimizer.scenarios.evaluate import Planner, Setting, evaluate, setting
from optimizer.scenarios.told import survive_data

SMALL = gpu("small", memory_gib=24)


@pytest.fixture(scope="module")
def asked() -> Inputs:
    return worlds.inputs()


@pytest.fixture(scope="module")
def planned(asked):
    return optimize(asked, worlds.LIMITS)


@pytest.fixture(scope="module")
def base(asked, planned) -> Setting:
    return setting(asked, planned, worlds.LIMITS)


@pytest.fixture(scope="module")
def ask(base):
    return partial(evaluate, base)


def price(inputs: Inputs) -> int:
    """Of a proved plan from scratch."""
    plan = optimize(inputs, worlds.LIMITS).plan
    assert plan.status == "optimal"
    return plan.price_micros


# --- quote ----------------------------------------------------------------------------------------


def test_a_quote_is_the_difference_of_two_proved_plans(asked, base):
    new = deployment("new", tenant="initech", replicas=3, needs=Needs(mig_profile="3g.40gb"))
    both = replace(asked.workloads, deployments=(*asked.workloads.deployments, new))
    quote = questions.quote(Planner(base), [new])
    assert quote.proved
    assert quote.fits
    assert quote.marginal_micros == price(replace(asked, workloads=both)) - price(asked)
    assert [r.deployment for r in quote.replicas] == ["new"] * 3
    assert quote.average_micros > 0


def test_a_quote_of_what_has_no_room_says_what_to_buy(base):
    new = deployment("new", replicas=9, needs=Needs(gpus=1), allow=replace(worlds_allow("a100")))
    quote = questions.quote(Planner(base), [new])
    assert not quote.fits
    short = {one.deployment: one for one in quote.answer.unmet}
    assert "more a100" in short["new"].smallest_fix


def worlds_allow(*gpus: str):
    from optimizer.domain.workload import Allow

    return Allow(gpus=gpus)


# --- headroom -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("all", None), ("deployment", "chat")])
def test_headroom_brackets_agree_with_direct_solves(base, ask, kind, name):
    found = questions.headroom(base, ask, kind, name, most_ppm=16_000_000)
    fits, breaks = ask(
        [Scenario(f"{f}", (Scale(kind, name, f),)) for f in (found.fits_ppm, found.breaks_ppm)]
    )
    assert fits.unmet == ()
    assert breaks.unmet == found.first != ()
    assert found.breaks_ppm - found.fits_ppm <= 20_000
    assert found.proved


def test_headroom_ends_where_all_asked_fits(base, ask):
    found = questions.headroom(base, ask, "deployment", "chat", most_ppm=1_100_000)
    assert (found.fits_ppm, found.breaks_ppm) == (1_100_000, None)


def test_headroom_of_nobody_is_unanswered(base, ask):
    with pytest.raises(questions.Unanswered, match="chat"):
        questions.headroom(base, ask, "deployment", "chatt")


def test_an_overfull_fleet_of_many_priorities_is_answered():
    """The higher is served first: what the fleet holds goes to the last of twelve."""
    way = (MeasuredOption("a100", 1_000, mig_profile="1g.10gb"),)
    many = [replace(deployment(f"p{i:02}", rps=1, measured=way), priority=i) for i in range(12)]
    inputs = worlds.inputs()
    inputs = replace(inputs, workloads=replace(inputs.workloads, deployments=tuple(many)))
    base = setting(inputs, optimize(inputs, worlds.LIMITS), worlds.LIMITS)
    (answer,) = evaluate(base, [Scenario("much", (Scale("all", None, 9_000_000),))])
    assert answer.failed is None
    served = [d.name for d in many if d.name not in {one.deployment for one in answer.unmet}]
    assert served == ["p09", "p10", "p11"]  # 28 slices for nine each


# --- survive --------------------------------------------------------------------------------------


def test_survive_agrees_with_removing_the_domain_by_hand(asked, base, planned, ask):
    losses = questions.survive(planned.problem, planned.plan.placement, ask)
    assert [(x.kind, x.name) for x in losses] == [
        *[("node", n) for n in ("big-0", "big-1", "small")],
        *[("rack", n) for n in ("r0", "r1", "r9")],
    ]
    for loss in losses[:3]:
        nodes = tuple(n for n in asked.fleet.nodes if n.name != loss.name)
        left = replace(asked, fleet=replace(asked.fleet, nodes=nodes))
        assert loss.answer.price_micros == price(left)
        assert loss.answer.unmet == optimize(left, worlds.LIMITS).plan.unmet
        here = [
            r.id
            for r in planned.plan.placement.replicas
            if loss.name in {node_of(g) for g in r.gpus}
        ]
        assert list(loss.replicas) == here


def test_who_is_short_before_anything_moves(planned):
    problem, placement = planned.problem, planned.plan.placement
    assert list(questions.shorts(problem, placement, set())) == []
    everything = {n.name for n in problem.fleet.nodes}
    assert list(questions.shorts(problem, placement, everything)) == [
        ("chat", 12_000, 0),
        ("batch", 0, 2),
    ]


def test_of_many_losses_the_worst_are_shown():
    fine = Answer("x", "optimal", price_micros=1, gpus_used=1)
    short = questions.Short("chat", 9, 0)
    gone = replace(fine, unmet=(Unmet("chat", 9, 0, "no room"),))
    losses = [questions.Loss("node", f"n{i}", (), (), fine) for i in range(50)]
    losses[30] = replace(losses[30], short=(short,))
    losses[40] = replace(losses[40], short=(short,), answer=gone)
    data = survive_data(losses, "USD", {"chat": "node"})
    assert [row["lost"] for row in data["rows"]] == ["node n40", "node n30"]
    assert len(data["losses"]) == 50
    assert data["says"][0].startswith("Of 50 nodes lost in turn, 2 leave somebody short")
    assert "chat should survive any node, but not n40." in data["says"]


# --- retire ---------------------------------------------------------------------------------------


def test_retired_nodes_leave_nobody_short_and_no_more_can_go(base, planned, ask):
    found = questions.retire(base, planned.plan.placement, ask)
    assert found.nodes
    assert found.answer.unmet == ()
    assert {*found.nodes} | {name for name, _ in found.needed} == {
        n.name for n in base.inputs.fleet.nodes
    }
    for name, _ in found.needed:
        every = tuple(Lose("node", n) for n in (*found.nodes, name))
        (without,) = ask([Scenario("x", every)])
        assert without.unmet or without.failed


# --- buy ------------------------------------------------------------------------------------------


FOUR, ONE = node("a100-4", a100(), 4), node("a100-1", a100(), 1)


@pytest.mark.parametrize(
    "offers",
    [
        (Offer(FOUR, 8_000_000, 2), Offer(ONE, 3_000_000, 3)),
        (Offer(FOUR, 8_000_000, 2), Offer(ONE, 3_000_000, 3, discounts=(Discount(2, 400_000),))),
        (Offer(FOUR, 8_000_000, 2, least=2), Offer(ONE, 3_000_000, 5, least=4)),
    ],
    ids=["plain", "cheaper from two on", "not fewer than"],
)
def test_the_cheapest_mix_is_bought(base, ask, offers):
    grown = Scenario("grown", (Scale("deployment", "batch", 5_000_000),))  # ten 3g.40gb: five GPUs
    found = buy(Planner(base), ask, offers, grown)
    assert found.proved
    assert found.answer.unmet == ()
    assert found.price_micros == brute_force(ask, offers, grown)
    assert buy(Planner(base), ask, offers, grown, at_once=3) == found


@pytest.mark.parametrize("tries", [0, 8])
def test_what_no_plan_was_found_for_is_not_said_to_fail(base, ask, tries):
    """Whoever plans mixes finds nothing for those that bounds leave, but for the largest."""
    grown = Scenario("grown", (Scale("deployment", "batch", 5_000_000),))
    offers = (Offer(FOUR, 8_000_000, 2), Offer(ONE, 3_000_000, 3))

    def finds_little(scenarios):
        found = zip(scenarios, ask(scenarios), strict=True)
        return [a if len(s.changes[-1].nodes) == 5 else short(a) for s, a in found]

    def short(answer):
        return replace(answer, unmet=(Unmet("batch", 1000, 1, ""),), unmet_proved=False)

    found = buy(Planner(base), finds_little, offers, grown, tries=tries)
    assert (found.counts, found.proved, found.answer.unmet) == ((2, 3), False, ())
    assert found.at_least_micros == brute_force(ask, offers, grown) < found.price_micros
    nothing = buy(Planner(base), lambda some: [short(a) for a in ask(some)], offers, grown)
    assert nothing.counts is None
    assert [one.deployment for one in nothing.answer.unmet] == ["batch"]


def test_what_a_scenario_adds_itself_is_not_bought(base, ask):
    """Its nodes cost nothing more, so they must not lift the bound."""
    own = replace(node("own", a100(), 4), price_micros_per_gpu_hour=9_000_000)
    grown = Scenario("grown", (AddNodes((own,)), Scale("deployment", "batch", 7_000_000)))
    offers = (Offer(FOUR, 8_000_000, 1), Offer(ONE, 3_000_000, 3))
    found = buy(Planner(base), ask, offers, grown)
    assert (found.price_micros, found.proved) == (brute_force(ask, offers, grown), True)


def brute_force(ask, offers, scenario):
    """The price of the cheapest mix that does, all of them tried."""
    mixes = list(product(*((0, *offer.counts) for offer in offers)))
    answers = ask([with_nodes(scenario, offers, mix) for mix in mixes])
    priced = [sum(o.total_micros(n) for o, n in zip(offers, mix, strict=True)) for mix in mixes]
    return min(p for p, a in zip(priced, answers, strict=True) if a.planned and not a.unmet)


def with_nodes(scenario, offers, mix):
    nodes = tuple(
        replace(offer.node, name=f"{offer.name}-{i}", price_micros_per_gpu_hour=0)
        for offer, count in zip(offers, mix, strict=True)
        for i in range(count)
    )
    return Scenario(str(mix), (*scenario.changes, AddNodes(nodes)))


@pytest.mark.parametrize(
    ("count", "months", "total"),
    [(1, 0, 10.0), (3, 0, 30.0), (4, 0, 36.0), (9, 0, 72.0), (1, 11, 10.0), (4, 12, 27.0)],
)
def test_the_price_of_an_offer(count, months, total):
    offer = Offer(
        ONE,
        10_000_000,
        discounts=(Discount(4, 100_000), Discount(9, 200_000)),
        commitments=(Commitment(12, 250_000), Commitment(36, 500_000)),
    )
    assert offer.kept_for(months).total_micros(count) == round(total * 1_000_000)
    assert offer.cheapest_micros == 8_000_000


def test_nothing_is_bought_where_all_fits(base, ask):
    offers = [Offer(node("a100-1", a100(), 1), 3_000_000)]
    found = buy(Planner(base), ask, offers, Scenario("as it is", ()))
    assert (found.counts, found.price_micros, found.proved) == ((0,), 0, True)


def test_offers_that_do_not_do_are_told(base, ask):
    offers = [Offer(node("tiny", SMALL, 1), 1_000_000)]
    found = buy(
        Planner(base), ask, offers, Scenario("x", (Scale("deployment", "batch", 9_000_000),))
    )
    assert found.counts is None
    assert [one.deployment for one in found.answer.unmet] == ["batch"]


# --- sensitivity ----------------------------------------------------------------------------------


def test_the_price_of_a_rule_is_that_of_a_plan_without_it(asked):
    chat = asked.workloads.deployments[0]
    held = replace(chat, spread_node=1, spread_rack=2, pin=("big-0", "big-1"))
    tight = replace(asked, workloads=replace(asked.workloads, deployments=(held,)))
    base = setting(tight, optimize(tight, worlds.LIMITS), worlds.LIMITS)
    found = questions.sensitivity(base, partial(evaluate, base))
    assert {r.rule for r in found} == {"spread", "pin"}
    for row in found:
        free = {"spread": {"spread_node": None, "spread_rack": None}, "pin": {"pin": ()}}[row.rule]
        without = replace(
            tight, workloads=replace(tight.workloads, deployments=(replace(held, **free),))
        )
        left = optimize(without, worlds.LIMITS).plan
        assert row.answer.unmet == left.unmet
        assert row.saved_micros == base.before.answer.price_micros - left.price_micros


def test_what_states_no_rule_has_no_price(base, ask):
    assert questions.sensitivity(base, ask) == ()


def test_a_ban_on_low_precision_is_asked(base):
    from optimizer.domain.workload import Allow

    bare = MeasuredOption("a100", 1000, mig_profile="1g.10gb")
    strict = deployment("strict", rps=1, measured=(bare,), allow=Allow(precisions=("bf16",)))
    ((_, rule, said, changes),) = questions._relaxations(strict)
    assert (rule, said) == ("allow.precisions", "no fp8 or int4")
    assert changes[0].value == ("bf16", "fp8", "int4")
