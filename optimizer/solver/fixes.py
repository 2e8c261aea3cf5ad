"""Single changes that let clashing rules hold, each found by solving the changed problem."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from optimizer.domain import words
from optimizer.domain.fleet import Node
from optimizer.domain.problem import PlacementProblem
from optimizer.solver.easing import Ceiling, Change, Easing, Part, least
from optimizer.solver.foresee import demanding, room_given, within_reach
from optimizer.solver.possible import Asking

MOST_FIXES = 6
MOST_NODES = 64  # that are added of a product
MORE_NODES = 3  # than the fewest, each of fewer GPUs
PRODUCTS = 2  # whose GPUs are told, the cheapest

Fix = tuple[str, Change]


def fixes(asking: Asking, problem: PlacementProblem, core: Sequence[Part]) -> list[Fix]:
    """Rules' numbers made looser by as little as helps, then GPUs, then rules left out."""
    found: list[Fix] = []
    stiff: list[Part] = []
    for part in core:
        eased = _eased(asking, problem, part)
        if eased is None:
            stiff.append(part)
        else:
            found.append(eased)
    found += more_gpus(asking, problem)
    for part in stiff:
        if len(found) >= MOST_FIXES:
            break
        if asking.helps(part.without(problem)):
            found.append((f"without {part.name}", part.without))
    return found[:MOST_FIXES]


def _eased(asking: Asking, problem: PlacementProblem, part: Part) -> Fix | None:
    """The smallest change of the rule's number that helps."""
    if part.ceiling is not None:
        return _raised(asking, problem, part, part.ceiling)
    for easing in part.easings:
        helps = partial(_helps, asking, problem, easing)
        step = least(easing.steps, helps)
        if step is not None:
            return f"with {easing.words(step)}", partial(easing.at, step=step)
    return None


def _helps(asking: Asking, problem: PlacementProblem, easing: Easing, step: int) -> bool:
    return asking.helps(easing.at(problem, step))


def _raised(asking: Asking, problem: PlacementProblem, part: Part, ceiling: Ceiling) -> Fix | None:
    """The lowest ceiling under which the rules hold, or one under which room was found."""
    free = part.without(problem)
    filled = room_given(within_reach(demanding(free)))
    spent = None if filled is None else ceiling.spent(filled)
    for lowest in (asking.least(free, ceiling.goal), spent):
        if lowest is None:
            continue
        value = ceiling.rounded(lowest)
        raised = partial(ceiling.at, ceiling=value)
        if asking.helps(raised(problem)):
            return f"with {ceiling.words(value)}", raised
    return None


def more_gpus(asking: Asking, problem: PlacementProblem) -> list[Fix]:
    """The fewest GPUs more of a product, of the products where that is cheapest."""
    offers: list[tuple[int, int, int, int, Node]] = []
    for number, node in enumerate(_one_of_each(problem)):
        fewest = _fewest(asking, problem, node)
        if fewest is not None:
            count, gpus = fewest
            price = problem.fleet.price_micros(node) * count * gpus
            offers.append((price, number, count, gpus, node))
    offers.sort(key=lambda offer: offer[:2])
    return [
        (
            f"with {_grown_words(problem, node, count, gpus)}",
            partial(_grown, node=node, count=count, gpus=gpus),
        )
        for _, _, count, gpus, node in offers[:PRODUCTS]
    ]


def _one_of_each(problem: PlacementProblem) -> list[Node]:
    """A node of each product of which somebody may use a new node."""
    open_to = [d.name for d in problem.deployments if d.reserve or not d.pin]
    wanted = {way.gpu for name in open_to for way in problem.candidates.get(name, ())}
    nodes = {n.gpu.name: n for n in reversed(problem.fleet.nodes)}
    return [node for name, node in nodes.items() if name in wanted]


def _fewest(asking: Asking, problem: PlacementProblem, node: Node) -> tuple[int, int] | None:
    """How many nodes, and GPUs of each, as few GPUs in all as help."""

    def helps(count: int, gpus: int) -> bool:
        return asking.helps(_grown(problem, node, count, gpus))

    if not helps(MOST_NODES, node.gpus):
        return None
    most = least(MOST_NODES, lambda count: helps(count, node.gpus)) or MOST_NODES
    best: tuple[int, int] | None = None
    for count in range(most, most + 1 + MORE_NODES):
        fewer = node.gpus if best is None else (best[0] * best[1] - 1) // count
        if fewer < 1:
            break
        gpus = least(min(fewer, node.gpus), partial(helps, count))
        if gpus is not None:
            best = (count, gpus)
    return best


def _grown_words(problem: PlacementProblem, node: Node, count: int, gpus: int) -> str:
    apart = f"a {'zone' if _by_zone(problem) else 'rack'} of its own"
    each = f"each {apart}" if count > 1 else apart
    like = f"{words.plural(count, 'node')} of {gpus}, {each}"
    fleet, price = problem.fleet, problem.fleet.price_micros(node) * count * gpus
    cost = f"; {words.price(price, fleet.unit)}" if fleet.priced else ""
    return f"{count * gpus} more {node.gpu.name} ({like}{cost})"


def _grown(problem: PlacementProblem, node: Node, count: int, gpus: int) -> PlacementProblem:
    zone = None if _by_zone(problem) else node.zone
    new = tuple(
        replace(
            node, name=f"new {i}", gpus=gpus, rack=None, zone=zone, devices=(), cordoned=False,
            layouts_fixed=False,
        )
        for i in range(count)
    )  # fmt: skip
    names = tuple(one.name for one in new)
    deployments = tuple(
        replace(d, pin=(*d.pin, *names)) if d.reserve and node.name in d.pin else d
        for d in problem.deployments
    )
    fleet = replace(problem.fleet, nodes=(*problem.fleet.nodes, *new))
    return replace(problem, fleet=fleet, deployments=deployments)


def _by_zone(problem: PlacementProblem) -> bool:
    return any(d.survive == "zone" for d in problem.deployments)
