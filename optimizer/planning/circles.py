"""Who waits for whom: circles, whom to take aside to open them, and the longest way to the end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
Waits = Mapping[T, Sequence[T]]  # whom each one waits for


def components(nodes: Sequence[T], waits: Waits[T]) -> Iterator[list[T]]:
    """Strongly connected components, each after all those it waits for (Tarjan, iterative)."""
    index: dict[T, int] = {}
    low: dict[T, int] = {}
    stack: list[T] = []
    inside: set[T] = set()
    for root in nodes:
        if root in index:
            continue
        work = [(root, iter(waits.get(root, ())))]
        index[root] = low[root] = len(index)
        stack.append(root)
        inside.add(root)
        while work:
            node, ahead = work[-1]
            for other in ahead:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    inside.add(other)
                    work.append((other, iter(waits.get(other, ()))))
                    break
                if other in inside:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    yield _popped(stack, inside, node)


def _popped(stack: list[T], inside: set[T], root: T) -> list[T]:
    found = []
    while True:
        node = stack.pop()
        inside.discard(node)
        found.append(node)
        if node == root:
            return found


def circular(component: Sequence[T], waits: Waits[T]) -> bool:
    """Whether its members wait for each other, or one for itself."""
    return len(component) > 1 or component[0] in waits.get(component[0], ())


def aside(component: Sequence[T], waits: Waits[T], cost: Callable[[T], float]) -> list[T]:
    """Members without whom nobody waits in a circle: few and light ones, picked greedily.

    In each circle that is left, the one goes whom most pass through for its cost. Those who wait
    for themselves must all go.
    """
    found: list[T] = []
    open_parts = [list(component)]
    while open_parts:
        part = open_parts.pop()
        members = set(part)
        ahead = {node: [w for w in waits.get(node, ()) if w in members] for node in part}
        behind = dict.fromkeys(part, 0)
        for node in part:
            for other in ahead[node]:
                behind[other] += 1
        own = [node for node in part if node in ahead[node]]
        chosen = own or [max(part, key=lambda n: behind[n] * len(ahead[n]) / max(1e-9, cost(n)))]
        found += chosen
        gone = set(chosen)
        rest = [node for node in part if node not in gone]
        left = {node: [w for w in ahead[node] if w not in gone] for node in rest}
        open_parts += [c for c in components(rest, left) if circular(c, left)]
    return found


def tails(nodes: Sequence[T], waits: Waits[T], length: Callable[[T], float]) -> dict[T, float]:
    """From each one's start to the end of the last who waits for it; circles count once."""
    followers: dict[T, list[T]] = {node: [] for node in nodes}
    for node in nodes:
        for other in waits.get(node, ()):
            if other in followers:
                followers[other].append(node)
    found: dict[T, float] = {}
    # Each component comes after those it waits for; so, backwards, followers are known first.
    for component in reversed(list(components(nodes, waits))):
        for node in component:
            later = max((found.get(f, 0.0) for f in followers[node]), default=0.0)
            found[node] = length(node) + later
    return found
