"""What to buy: the cheapest mix of new nodes with which a scenario leaves nobody unserved."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import islice, takewhile

from optimizer.domain.fleet import Node
from optimizer.domain.offer import Offer
from optimizer.domain.outcome import Limits
from optimizer.domain.scenario import AddNodes, Assign, Change, Scenario
from optimizer.scenarios.answer import Answer
from optimizer.scenarios.evaluate import Planner, Setting
from optimizer.scenarios.questions import Ask, Unanswered

Mix = tuple[int, ...]


SERVING_EFFORT = 0.05  # of the effort: for each mix, of which several are tried
LOOKED_AT = 400  # mixes, the cheapest first, that a bound may refute
WIDER = 2  # how much further on in the order the next mix lies that is tried, while none does
BASELINE_GAP = 0.02  # how near to the best the baseline must be: it is only where plans start

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Purchase:
    """The mix found: how many of each offer, and what the plan is then.

    ``counts`` None: no plan serves all even with all that is offered (``answer`` says who is
    short, and whether that is proved). ``at_least_micros``: no mix that does costs less an hour.
    ``answer``: a plan that serves all, not the cheapest. ``tried``: mixes that were planned.
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


def quickly(limits: Limits) -> Limits:
    """Limits of the baseline that mixes start from: near to the best will do."""
    return replace(limits, gap=max(limits.gap, BASELINE_GAP))


def serving(setting: Setting) -> Setting:
    """The same, where all that is asked of a mix is whether it serves everybody."""
    limits = setting.limits
    effort = max(1.0, SERVING_EFFORT * limits.effort)
    return replace(setting, limits=replace(limits, gap=1.0, effort=effort), serving=True)


def buy(
    planner: Planner,
    ask: Ask,
    offers: Sequence[Offer],
    scenario: Scenario,
    *,
    tries: int = 8,
    at_once: int = 1,
    tell: Tell = lambda _: None,
) -> Purchase:
    """The cheapest mix of offered nodes with which nobody in the scenario is unserved.

    A bound refutes most mixes that do not do. Those that it leaves are planned in order of price,
    in ever wider steps, until one does; then at most ``tries`` of the cheaper ones that were
    passed over, ``at_once`` of them together; the outcome does not depend on how many. ``tell``
    hears of each mix looked at. Raises ScenarioFault, Unanswered.
    """
    return _Search(planner, ask, offers, scenario, at_once, tell).run(tries)


class _Search:
    """What is known of mixes: which were looked at and not refuted, planned, and the best."""

    def __init__(
        self,
        planner: Planner,
        ask: Ask,
        offers: Sequence[Offer],
        scenario: Scenario,
        at_once: int,
        tell: Tell,
    ) -> None:
        self.planner, self.ask, self.offers, self.scenario = planner, ask, offers, scenario
        self.at_once, self.tell = at_once, tell
        self.every = tuple(offer.most for offer in offers)
        self.open: list[Mix] = []  # in order of price
        self.refuted: list[Mix] = []
        self.failed: dict[Mix, Answer] = {}  # planned, and somebody is short
        self.best: tuple[Mix, Answer] | None = None

    def run(self, tries: int) -> Purchase:
        if self._is_refuted(self.every):
            (answer,) = self.ask([self._asked(self.every)])  # it says who is short
            return Purchase(None, 0, 0, answer, 1)
        most = _price(self.offers, self.every)
        mixes = _between(self.offers, min(self._floor(), most), most)
        looked_at = list(islice(mixes, LOOKED_AT + 1))
        beyond = [_price(self.offers, mix) for mix in looked_at[LOOKED_AT:]]
        self._plan(_ever_wider(self._opened(looked_at[:LOOKED_AT])))
        if self.best is None:
            self._plan([self.every])
        if self.best is None:
            return Purchase(None, 0, 0, self.failed[self.every], len(self.failed))
        self._plan(list(self._passed_over())[:tries])
        mix, answer = self.best
        price = _price(self.offers, mix)
        doubtful = [_price(self.offers, one) for one in self._cheaper() if not self._proved(one)]
        return Purchase(mix, price, min([price, *doubtful, *beyond]), answer, len(self.failed) + 1)

    def _floor(self) -> int:
        """No mix costs less: all offers together, by the GPU, beside the fleet for nothing."""
        from optimizer.solver.serving import price_floor

        free = Scenario(self.scenario.name, tuple(map(_for_nothing, self.scenario.changes)))
        mixed = _mixed(free, self.offers, self.every, "all offers", relaxed=True)
        return price_floor(_relaxed(self.planner).posed(mixed)[0])

    def _is_refuted(self, mix: Mix) -> bool:
        from optimizer.solver.serving import refuted

        if any(_within(mix, other) for other in self.refuted):
            return True
        if not refuted(self.planner.posed(self._asked(mix))[0]):
            return False
        self.refuted.append(mix)
        self._say(mix, "a bound says that it does not do")
        return True

    def _opened(self, mixes: Sequence[Mix]) -> Iterator[Mix]:
        """Those that no bound refutes, kept as open."""
        for mix in mixes:
            if not self._is_refuted(mix):
                self.open.append(mix)
                yield mix

    def _plan(self, mixes: Iterable[Mix]) -> None:
        """Plan them until one serves everybody, which then is the best."""
        rest = iter(mixes)
        while batch := list(islice(rest, self.at_once)):
            answers = self.ask([self._asked(mix) for mix in batch])
            for mix, answer in zip(batch, answers, strict=True):
                if _does(answer):
                    self._say(mix, "serves all")
                    self.best = mix, answer
                    return
                self.failed[mix] = answer
                proved = "it does not do" if _is_proof(answer) else "no plan was found"
                self._say(mix, proved)

    def _cheaper(self) -> Iterator[Mix]:
        """Open mixes that come before the best."""
        return takewhile(lambda mix: self.best is None or mix != self.best[0], self.open)

    def _passed_over(self) -> Iterator[Mix]:
        """Those of them worth a plan: where more was not seen to do, less will not."""
        for mix in self._cheaper():
            if not any(_within(mix, other) for other in self.failed):
                yield mix

    def _proved(self, mix: Mix) -> bool:
        """Whether a plan's own bound proves that it does not do."""
        proofs = (other for other, answer in self.failed.items() if _is_proof(answer))
        return any(_within(mix, other) for other in proofs)

    def _asked(self, mix: Mix) -> Scenario:
        priced = self.planner.setting.inputs.fleet.priced
        return _mixed(self.scenario, self.offers, mix, _words(self.offers, mix), priced=priced)

    def _say(self, mix: Mix, what: str) -> None:
        self.tell(f"{_words(self.offers, mix)}: {what}")


def _ever_wider(mixes: Iterator[Mix]) -> Iterator[Mix]:
    """The first, then each further on than the one before."""
    step = 1
    while (mix := next(islice(mixes, step - 1, None), None)) is not None:
        yield mix
        step *= WIDER


def _within(mix: Mix, other: Mix) -> bool:
    """Whether the other holds all that the mix does, so that it does whatever this one does."""
    return all(one <= more for one, more in zip(mix, other, strict=True))


def _is_proof(answer: Answer) -> bool:
    return answer.unmet_proved or answer.status == "infeasible"


def _does(answer: Answer) -> bool:
    if answer.failed is not None:
        raise Unanswered(f"{answer.name}: {answer.failed}")
    return answer.planned and not answer.unmet


def _relaxed(planner: Planner) -> Planner:
    """The same fleet for nothing, so that the price is that of new GPUs."""
    s = planner.setting
    fleet = s.inputs.fleet
    nodes = tuple(replace(node, price_micros_per_gpu_hour=0) for node in fleet.nodes)
    free = replace(s.inputs, fleet=replace(fleet, nodes=nodes))
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
