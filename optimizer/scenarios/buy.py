"""What to buy: the cheapest mix of new nodes with which a scenario leaves nobody unserved."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import islice

from optimizer.domain.fleet import Node
from optimizer.domain.offer import Offer
from optimizer.domain.placement import node_of
from optimizer.domain.scenario import AddNodes, Assign, Change, Scenario
from optimizer.scenarios.answer import Answer, summary
from optimizer.scenarios.evaluate import Planner
from optimizer.scenarios.questions import Ask, Unanswered

Mix = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Purchase:
    """The mix found: how many of each offer, and what the plan is then.

    ``counts`` None: no plan serves all even with all that is offered (``answer`` says who is
    short, and whether that is proved). ``at_least_micros``: no mix that does costs less an hour.
    """

    counts: Mix | None
    price_micros: int
    at_least_micros: int
    answer: Answer
    tried: int

    @property
    def proved(self) -> bool:
        """Whether there is no cheaper mix."""
        return self.counts is not None and self.price_micros <= self.at_least_micros


def buy(
    planner: Planner,
    ask: Ask,
    offers: Sequence[Offer],
    scenario: Scenario,
    *,
    tries: int = 64,
    at_once: int = 1,
) -> Purchase:
    """The cheapest mix of offered nodes with which nobody in the scenario is unserved.

    All offers together, priced by the GPU and the fleet's own GPUs for nothing, bound the cost from
    both sides: what that plan uses is a mix that does, and no mix costs less than its bound.
    Between the two, mixes are tried in order of cost, ``at_once`` of them together; the first that
    does is the answer, however many. Raises ScenarioFault, Unanswered.
    """
    priced = planner.setting.inputs.fleet.priced

    def asked(mix: Mix) -> Scenario:
        return _mixed(scenario, offers, mix, _words(offers, mix), priced=priced)

    every = tuple(offer.most for offer in offers)
    free = Scenario(scenario.name, tuple(map(_for_nothing, scenario.changes)))
    mixed = _mixed(free, offers, every, "all offers", relaxed=True)
    plan = _relaxed(planner).plan(mixed).plan
    answer = summary(plan, mixed.name).answer
    if answer.status == "nothing_found":
        raise Unanswered("no plan was found in time; give it more --effort")
    if not answer.planned or answer.unmet:
        return Purchase(None, 0, 0, answer, 1)
    used = {node_of(gpu.id) for gpu in plan.gpus if gpu.mode != "empty"}
    best = tuple(_enough(o, sum(n.name in used for n in _nodes(o, o.most, 0))) for o in offers)
    floor, sure, tried = answer.bound_micros or 0, True, 1
    between = list(islice(_between(offers, floor, _price(offers, best)), tries + 1))
    for batch in _batches(between[:tries], at_once):
        found = ask([asked(mix) for mix in batch])
        for mix, one in zip(batch, found, strict=True):
            tried += 1
            if _does(one):
                return _bought(offers, mix, floor, sure, one, tried)
            sure &= one.unmet_proved or one.status == "infeasible"
            floor = max(floor, _price(offers, mix)) if sure else floor
    sure &= len(between) <= tries
    (last,) = ask([asked(best)])
    return _bought(offers, best, floor, sure, last, tried + 1)


def _bought(
    offers: Sequence[Offer], mix: Mix, floor: int, sure: bool, answer: Answer, tried: int
) -> Purchase:
    """``sure``: every cheaper mix was proved not to do."""
    price = _price(offers, mix)
    return Purchase(mix, price, price if sure else floor, answer, tried)


def _does(answer: Answer) -> bool:
    if answer.failed is not None:
        raise Unanswered(f"{answer.name}: {answer.failed}")
    return answer.planned and not answer.unmet


def _relaxed(planner: Planner) -> Planner:
    """The same fleet for nothing, so that the price is that of new GPUs."""
    s = planner.setting
    fleet = s.inputs.fleet
    nodes = tuple(replace(node, price_micros_per_gpu_hour=0) for node in fleet.nodes)
    free = replace(s.inputs, fleet=replace(fleet, nodes=nodes), current=None)
    return Planner(replace(s, inputs=free))


def _for_nothing(change: Change) -> Change:
    """The change as it is where the fleet's own nodes, and those the scenario adds, are free."""
    if isinstance(change, AddNodes):
        return AddNodes(tuple(replace(n, price_micros_per_gpu_hour=0) for n in change.nodes))
    if isinstance(change, Assign) and change.path == ("price_micros_per_gpu_hour",):
        return replace(change, value=0)
    return change


def _mixed(
    scenario: Scenario,
    offers: Sequence[Offer],
    mix: Mix,
    name: str,
    *,
    priced: bool = True,
    relaxed: bool = False,
) -> Scenario:
    """The scenario with these nodes added; ``relaxed``: at the least that each could cost."""
    nodes: list[Node] = []
    for offer, count in zip(offers, mix, strict=True):
        if not count:
            continue
        each = offer.cheapest_micros if relaxed else offer.total_micros(count) // count
        nodes += _nodes(offer, count, each // offer.node.gpus if priced else None)
    return Scenario(name, (*scenario.changes, AddNodes(tuple(nodes))))


def _nodes(offer: Offer, count: int, price_micros: int | None) -> list[Node]:
    """So many nodes of an offer, at a price of each GPU, which is rounded down."""
    like = replace(offer.node, price_micros_per_gpu_hour=price_micros)
    return [replace(like, name=f"{like.name}-{n}") for n in range(1, count + 1)]


def _enough(offer: Offer, count: int) -> int:
    """As few as can be taken, so many or more."""
    return max(count, offer.least) if count else 0


def _price(offers: Sequence[Offer], mix: Mix) -> int:
    return sum(o.total_micros(count) for o, count in zip(offers, mix, strict=True))


def _words(offers: Sequence[Offer], mix: Mix) -> str:
    """``2 x h100-80gb-sxm-8 + 1 x l40s-8``."""
    named = [f"{n} x {o.node.name}" for o, n in zip(offers, mix, strict=True) if n]
    return " + ".join(named) or "nothing"


def _between(offers: Sequence[Offer], floor: int, ceiling: int) -> Iterator[Mix]:
    """Every mix from ``floor`` to under ``ceiling``, in order of price.

    More of an offer never cost less, so the heap holds only next steps.
    """
    steps = [(0, *o.counts) for o in offers]
    start = (0,) * len(offers)
    heap: list[tuple[int, Mix, int]] = [(0, start, 0)]
    while heap:
        price, at, first = heappop(heap)
        if price >= ceiling:
            return
        if price >= floor:
            yield tuple(step[i] for step, i in zip(steps, at, strict=True))
        for i in range(first, len(offers)):  # only onwards, so that no mix comes twice
            if at[i] + 1 < len(steps[i]):
                more = (*at[:i], at[i] + 1, *at[i + 1 :])
                mix = tuple(step[j] for step, j in zip(steps, more, strict=True))
                heappush(heap, (_price(offers, mix), more, i))


def _batches(mixes: Sequence[Mix], size: int) -> Iterator[Sequence[Mix]]:
    yield from (mixes[i : i + size] for i in range(0, len(mixes), size))
