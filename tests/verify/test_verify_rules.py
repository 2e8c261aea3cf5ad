"""Every rule about replicas: nothing to say, just what is allowed, one too many."""

from dataclasses import replace

import pytest

from builders import (
    a100,
    candidate,
    deployment,
    fleet,
    gpu,
    node,
    place,
    placed,
    problem,
    replica,
    use,
)
from optimizer.domain.config import ReplicaConfig
from optimizer.domain.gpu import Gpu
from optimizer.domain.placement import Instance, Placement, Replica
from optimizer.domain.problem import PlacementProblem
from optimizer.verify import rules
from optimizer.verify.facts import Facts
from optimizer.verify.rules import Rule

A100 = a100()
TOY = gpu()
NOTHING = place()


def says(rule: Rule, asked: PlacementProblem, found: Placement) -> list[str]:
    """The subjects of the violations; each of them names the rule as the function is named."""
    violations = list(rule(Facts.of(asked, found)))
    assert {v.rule for v in violations} <= {rule.__name__}
    return sorted(v.subject for v in violations)


def toys(nodes: int = 1, gpus: int = 4, product: Gpu = TOY, **other: object) -> PlacementProblem:
    """Nodes n0, n1, ... of toy GPUs and the deployment ``chat`` on one whole GPU each."""
    machines = fleet(*(node(f"n{i}", product, gpus, **other) for i in range(nodes)))
    return problem(machines, [deployment(replicas=2)], [candidate(product=product)])


def chats(*gpus: str) -> list[Replica]:
    """chat/0, chat/1, ... each on one whole GPU."""
    return [replica(f"chat/{i}", id) for i, id in enumerate(gpus)]


TWINS = [replica("chat/0", "n0/0"), replica("chat/0", "n0/1")]


@pytest.mark.parametrize(
    ("found", "subjects"),
    [
        (NOTHING, []),
        (place(*chats("n0/0", "n0/1")), []),
        (place(*TWINS), ["chat/0"]),
        (place(replica("chat/one", "n0/0")), ["chat/one"]),
        (place(replace(TWINS[0], deployment="other")), ["chat/0", "chat/0"]),
        (place(replica("chat/0", "n9/0")), ["chat/0"]),
        (Placement((), (Instance("n9/0", placed("1g.10gb@0")),)), ["n9/0"]),
    ],
    ids=[
        "nothing runs",
        "two ids",
        "an id twice",
        "an id without a number",
        "another's id, and nobody's deployment",
        "no such GPU",
        "an instance on no GPU",
    ],
)
def test_identity(found: Placement, subjects: list[str]) -> None:
    assert says(rules.identity, toys(), found) == subjects


@pytest.mark.parametrize(
    ("replicas", "empty", "faults"),
    [
        ([], [], 0),
        ([replica(f"chat/{i}", "n0/0", mig=f"1g.10gb@{i}") for i in range(7)], [], 0),
        ([replica("chat/0", "n0/0", mig="3g.40gb@4")], ["n0/0 4g.40gb@0"], 0),
        ([replica("chat/0", "n0/0", mig="3g.40gb@4")], ["n0/0 1g.10gb@6"], 1),
        ([replica("chat/0", "n0/0", mig="3g.40gb@1")], [], 1),
        ([replica("chat/0", "n0/0", mig="9g.90gb@0")], [], 1),
        ([replica("chat/0", "n0/0"), replica("chat/1", "n0/0")], [], 1),
        ([replica("chat/0", "n0/0"), replica("chat/1", "n0/0", mig="1g.10gb@0")], [], 1),
        ([replica("chat/0", "n0/0")], ["n0/0 1g.10gb@0"], 1),
        ([replica("chat/0", "n0/0", share=use(1))], [], 1),
        ([replica("chat/0", "n0/0", "n0/1", mig="1g.10gb@0")], [], 1),
        ([replica("chat/0", "n0/0", "n0/0")], [], 1),
        ([replica("chat/0")], [], 1),
    ],
    ids=[
        "nothing runs",
        "a full layout",
        "an empty instance beside",
        "an empty instance overlaps",
        "no such start",
        "no such profile",
        "held whole twice",
        "whole and cut at once",
        "whole over an empty instance",
        "a mode the node does not allow",
        "an instance on two GPUs",
        "a GPU twice",
        "no GPU",
    ],
)
def test_slot_legality(replicas: list[Replica], empty: list[str], faults: int) -> None:
    asked = toys(product=A100)
    assert len(says(rules.slot_legality, asked, place(*replicas, empty=empty))) == faults


@pytest.mark.parametrize("figure", ["memory", "bandwidth", "compute"])
@pytest.mark.parametrize(("part", "fits"), [(0.0, True), (1.0, True), (1.001, False)])
def test_device_room_of_one_gpu(figure: str, part: float, fits: bool) -> None:
    rule = getattr(rules, f"device_{figure}")
    takes = {
        "memory": use(memory_gib=80 * part),
        "bandwidth": use(bandwidth_gbs=2000 * part),
        "compute": use(compute=part),
    }[figure]
    asked = problem(fleet(), [deployment()], [candidate(takes=takes)])
    assert says(rule, asked, place(*chats("n0/0"))) == ([] if fits else ["chat/0"])


@pytest.mark.parametrize("figure", ["memory", "bandwidth", "compute"])
@pytest.mark.parametrize(("count", "fits"), [(0, True), (4, True), (5, False)])
def test_device_room_of_shares(figure: str, count: int, fits: bool) -> None:
    rule = getattr(rules, f"device_{figure}")
    quarter = {
        "memory": use(memory_gib=20),
        "bandwidth": use(bandwidth_gbs=500),
        "compute": use(compute=0.25),
    }[figure]
    asked = problem(fleet(), [deployment(replicas=9)], [candidate(share=quarter)])
    shares = [replica(f"chat/{i}", "n0/0", share=quarter) for i in range(count)]
    assert says(rule, asked, place(*shares)) == ([] if fits else ["n0/0"])


@pytest.mark.parametrize(
    ("takes", "broken"),
    [
        (use(9, 250, 1 / 7), []),
        (use(9, 251, 1 / 7), ["device_bandwidth"]),
        (use(9, 250, 1 / 6), ["device_compute"]),
        (use(10.1, 250, 1 / 7), ["device_memory"]),
    ],
    ids=["all it has", "bandwidth", "compute", "memory"],
)
def test_device_room_of_an_instance(takes: object, broken: list[str]) -> None:
    """A 1g.10gb of an 80 GiB, 2,000 GB/s GPU has an eighth of both and a seventh of the SMs."""
    down = replace(takes, compute_ppm=takes.compute_ppm - 1)  # type: ignore[type-var, attr-defined]
    ways = [candidate(product=A100, profile="1g.10gb", takes=down)]
    asked = problem(fleet(node("n0", A100)), [deployment()], ways)
    found = place(replica("chat/0", "n0/0", mig="1g.10gb@3"))
    every = (rules.device_memory, rules.device_bandwidth, rules.device_compute)
    assert [rule.__name__ for rule in every if says(rule, asked, found)] == broken


@pytest.mark.parametrize(
    ("rule", "needs"),
    [(rules.host_cpu, {"cpu_cores": 8}), (rules.host_memory, {"memory_gib": 8})],
    ids=["cpu", "memory"],
)
@pytest.mark.parametrize(
    ("room", "count", "fits"),
    [(None, 4, True), (16, 2, True), (16, 3, False)],
    ids=["nobody knows the room", "just fits", "one too many"],
)
def test_host(rule: Rule, needs: dict, room: float | None, count: int, fits: bool) -> None:
    machine = node("n0", gpus=4, **dict.fromkeys(needs, room))
    asked = problem(fleet(machine), [deployment(replicas=4, **needs)], [candidate()])
    found = place(*chats(*(f"n0/{i}" for i in range(count))))
    assert says(rule, asked, found) == ([] if fits else ["n0"])


STAGED = ReplicaConfig(tensor_parallel=2, pipeline_parallel=2)
THREE = ReplicaConfig(pipeline_parallel=3)
TWO = ReplicaConfig(pipeline_parallel=2)


@pytest.mark.parametrize(
    ("network", "pairs", "broken"),
    [
        (None, [("n0/0", "n1/0"), ("n0/1", "n1/1")], []),
        (0.2, [("n0/0", "n1/0"), ("n0/1", "n1/1")], []),
        (0.199, [("n0/0", "n1/0"), ("n0/1", "n1/1")], ["n0", "n1"]),
        (0.1, [("n0/0", "n0/1"), ("n0/2", "n0/3"), ("n1/0", "n1/1")], []),
    ],
    ids=["nobody knows the network", "just fits", "one too many", "nothing crosses"],
)
def test_network_bandwidth(
    network: float | None, pairs: list[tuple[str, str]], broken: list[str]
) -> None:
    """Each pipeline hands over 100 MB/s, if its two stages lie in two nodes."""
    machines = fleet(*(node(f"n{i}", TOY, 4, network_gbs=network) for i in range(2)))
    way = candidate(product=TOY, gpus=2, config=TWO, network_mbs=100)
    asked = problem(machines, [deployment(replicas=3)], [way])
    found = place(*(replica(f"chat/{i}", *gpus, config=TWO) for i, gpus in enumerate(pairs)))
    assert says(rules.network_bandwidth, asked, found) == broken


@pytest.mark.parametrize(
    ("domain", "gpus", "config", "fits"),
    [
        ("node", ("n0/1",), None, True),
        ("node", ("n0/0", "n0/3"), None, True),
        ("node", ("n0/0", "n1/0"), None, False),
        ("pair", ("n0/2", "n0/3"), None, True),
        ("pair", ("n0/1", "n0/2"), None, False),
        ("pair", ("n0/0", "n0/1", "n0/2", "n0/3"), None, True),
        ("node", ("n0/0", "n0/1", "n1/0", "n1/1"), STAGED, True),
        ("node", ("n0/0", "n0/1", "n0/2", "n1/1"), STAGED, False),
        ("node", ("n0/0", "n0/1", "n1/0"), THREE, False),
        ("node", ("n0/0", "n0/1", "n0/2"), THREE, True),
    ],
    ids=[
        "one GPU",
        "one node",
        "two nodes",
        "a bridged pair",
        "two halves of pairs",
        "two pairs",
        "a stage a node",
        "a torn stage",
        "stages that lie unevenly",
        "three stages of one node",
    ],
)
def test_interconnect(
    domain: str, gpus: tuple[str, ...], config: ReplicaConfig | None, fits: bool
) -> None:
    asked = toys(2, nvlink_domain=domain)
    found = place(replica("chat/0", *gpus, config=config))
    assert says(rules.interconnect, asked, found) == ([] if fits else ["chat/0"])


@pytest.mark.parametrize(
    ("asks", "count", "fits"),
    [
        (deployment(rps=9), 4, True),
        (deployment(rps=9, max_replicas=3), 3, True),
        (deployment(rps=9, max_replicas=3), 4, False),
        (deployment(replicas=2), 1, True),
        (deployment(replicas=2), 3, False),
    ],
    ids=["no limit", "the most", "one too many", "too few is unmet demand", "more than asked"],
)
def test_replica_bounds(asks: object, count: int, fits: bool) -> None:
    asked = problem(fleet(node(gpus=4)), [asks], [candidate(rps=1)])  # type: ignore[list-item]
    found = place(*chats(*(f"n0/{i}" for i in range(count))))
    assert says(rules.replica_bounds, asked, found) == ([] if fits else ["chat"])


def test_demand_may_give_way() -> None:
    asked = problem(fleet(), [deployment(rps=9)], [candidate(rps=1)])
    assert says(rules.demand_met, asked, NOTHING) == []


@pytest.mark.parametrize(
    ("limits", "gpus", "fits"),
    [
        ({}, ("n0/0", "n0/1", "n0/2"), True),
        ({"spread_node": 2}, ("n0/0", "n0/1", "n1/0"), True),
        ({"spread_node": 2}, ("n0/0", "n0/1", "n0/2"), False),
        ({"spread_rack": 2}, ("n0/0", "n1/0", "n2/0"), True),
        ({"spread_rack": 2}, ("n0/0", "n0/1", "n1/0"), False),
    ],
    ids=["no limit", "a node full", "a node over", "a rack full", "a rack over"],
)
def test_spread(limits: dict, gpus: tuple[str, ...], fits: bool) -> None:
    """n0 and n1 share a rack, n2 is its own."""
    machines = fleet(
        node("n0", gpus=4, rack="r1"), node("n1", gpus=4, rack="r1"), node("n2", gpus=4)
    )
    asked = problem(machines, [deployment(replicas=3, **limits)], [candidate()])
    assert says(rules.spread, asked, place(*chats(*gpus))) == ([] if fits else ["chat"])


def test_a_replica_counts_once_in_each_domain_it_touches() -> None:
    asked = problem(
        fleet(node("n0", gpus=4), node("n1", gpus=4)),
        [deployment(replicas=2, spread_node=1)],
        [candidate(gpus=4, config=STAGED)],
    )
    across = replica("chat/0", "n0/0", "n0/1", "n1/0", "n1/1", config=STAGED)
    inside = replica("chat/1", "n1/2", "n1/3")
    assert says(rules.spread, asked, place(across)) == []
    assert says(rules.spread, asked, place(across, inside)) == ["chat"]


@pytest.mark.parametrize(
    ("survive", "gpus", "losses"),
    [
        (None, ("n0/0", "n0/1"), 0),
        ("node", ("n0/0", "n1/0", "n2/0"), 0),
        ("node", ("n0/0", "n0/1", "n1/0"), 1),
        ("node", ("n0/0",), 1),
        ("rack", ("n0/0", "n2/0", "n2/1"), 1),
        ("rack", ("n0/0", "n1/0", "n2/0", "n2/1"), 0),
    ],
    ids=[
        "not asked",
        "any node may go",
        "one node too full",
        "not even now",
        "one rack too full",
        "any rack may go",
    ],
)
def test_survive(survive: str | None, gpus: tuple[str, ...], losses: int) -> None:
    """Two of the replicas carry the demand."""
    machines = fleet(
        node("n0", gpus=4, rack="r1"), node("n1", gpus=4, rack="r1"), node("n2", gpus=4, rack="r2")
    )
    asked = problem(machines, [deployment(rps=2, survive=survive)], [candidate(rps=1)])
    assert says(rules.survive, asked, place(*chats(*gpus))) == ["chat"] * losses


@pytest.mark.parametrize(
    ("isolate", "other", "fits"),
    [
        ("none", "n0/0", True),
        ("tenant", "n0/1", True),
        ("tenant", "n0/0", False),
        ("gpu", "n0/1", True),
        ("gpu", "n0/0", False),
        ("node", "n1/0", True),
        ("node", "n0/1", False),
    ],
)
@pytest.mark.parametrize("same_tenant", [False, True], ids=["a stranger", "of the same tenant"])
def test_isolation(isolate: str, other: str, fits: bool, same_tenant: bool) -> None:
    tenants = ("acme", "acme" if same_tenant else "globex")
    asked = problem(
        fleet(node("n0", A100, 2), node("n1", A100, 2)),
        [
            deployment("chat", tenant=tenants[0], isolate=isolate),
            deployment("other", tenant=tenants[1]),
        ],
    )
    found = place(
        replica("chat/0", "n0/0", mig="1g.10gb@0"), replica("other/0", other, mig="1g.10gb@1")
    )
    may = fits or (same_tenant and isolate != "gpu")
    where = "n0" if isolate == "node" else "n0/0"
    assert says(rules.isolation, asked, found) == ([] if may else [where])


@pytest.mark.parametrize(
    ("avoid", "other", "fits"),
    [(("x",), "n0/0", True), (("batch",), "n0/1", True), (("batch",), "n0/0", False)],
    ids=["avoids others", "another GPU", "the same GPU"],
)
@pytest.mark.parametrize("by", ["chat", "batch"])
def test_anti_affinity_is_mutual(by: str, avoid: tuple[str, ...], other: str, fits: bool) -> None:
    away = tuple("chat" if by == "batch" and name == "batch" else name for name in avoid)
    asked = problem(
        fleet(node("n0", A100, 2)),
        [deployment(name, avoid=away if name == by else ()) for name in ("chat", "batch")],
    )
    found = place(
        replica("chat/0", "n0/0", mig="1g.10gb@0"), replica("batch/0", other, mig="1g.10gb@1")
    )
    assert says(rules.anti_affinity, asked, found) == ([] if fits else ["n0/0"])


@pytest.mark.parametrize(
    ("near", "rankers", "subjects"),
    [
        ((), (), []),
        (("ranker",), ("n0/2", "n1/2"), []),
        (("ranker",), ("n0/2", "n0/3"), ["chat/1"]),
        (("ranker",), (), ["chat/0", "chat/1"]),
    ],
    ids=["wants nobody", "one on each node", "both on one node", "none anywhere"],
)
def test_affinity(near: tuple[str, ...], rankers: tuple[str, ...], subjects: list[str]) -> None:
    asked = problem(
        fleet(node("n0", gpus=4), node("n1", gpus=4)),
        [deployment("chat", replicas=2, near=near), deployment("ranker", replicas=2)],
    )
    others = [replica(f"ranker/{i}", id) for i, id in enumerate(rankers)]
    assert says(rules.affinity, asked, place(*chats("n0/0", "n1/0"), *others)) == subjects


@pytest.mark.parametrize(
    ("pin", "gpus", "fits"),
    [
        ((), ("n1/0",), True),
        (("n0", "n1/0"), ("n0/3", "n1/0"), True),
        (("n0", "n1/0"), ("n0/3", "n1/1"), False),
    ],
    ids=["not pinned", "a node and a GPU", "one GPU outside"],
)
def test_pin(pin: tuple[str, ...], gpus: tuple[str, ...], fits: bool) -> None:
    machines = fleet(node("n0", gpus=4), node("n1", gpus=4))
    asked = problem(machines, [deployment(pin=pin)])
    assert says(rules.pin, asked, place(replica("chat/0", *gpus))) == ([] if fits else ["chat/0"])


BF16, FP8 = ReplicaConfig(precision="bf16"), ReplicaConfig(precision="fp8")


@pytest.mark.parametrize(
    ("one", "fits"),
    [
        (replica("chat/0", "n0/0", mig="2g.20gb@2", config=BF16), True),
        (replica("chat/0", "n0/0", mig="2g.20gb@2"), True),
        (replica("chat/0", "n0/0", mig="2g.20gb@2", config=FP8), False),
        (replica("chat/0", "n0/0", mig="3g.40gb@4", config=BF16), False),
        (replica("chat/0", "n0/0", config=BF16), False),
        (replica("chat/0", "n0/1", mig="1g.10gb@0", config=BF16), True),
        (replica("chat/0", "n0/1", mig="1g.10gb@1", config=BF16), False),
    ],
    ids=[
        "as offered",
        "settings not said",
        "another precision",
        "another profile",
        "the whole GPU",
        "kept as it runs today",
        "a new one of a kind only kept",
    ],
)
def test_allowed(one: Replica, fits: bool) -> None:
    ways = [
        candidate(product=A100, profile="2g.20gb", config=BF16),
        candidate(product=A100, profile="1g.10gb", config=BF16, running_only=True),
    ]
    today = place(replica("chat/0", "n0/1", mig="1g.10gb@0", config=BF16))
    asked = problem(fleet(node("n0", A100, 2)), [deployment()], ways, today)
    assert says(rules.allowed, asked, place(one)) == ([] if fits else ["chat/0"])


@pytest.mark.parametrize(
    ("machine", "fits"),
    [
        (node("n0", gpus=2), True),
        (node("n0", gpus=2, cordoned_gpus=[1]), True),
        (node("n0", gpus=2, cordoned_gpus=[0]), False),
        (node("n0", gpus=2, cordoned=True), False),
    ],
    ids=["none cordoned", "its neighbour cordoned", "its GPU cordoned", "its node cordoned"],
)
def test_cordon(machine: object, fits: bool) -> None:
    asked = problem(fleet(machine), [deployment()])  # type: ignore[arg-type]
    assert says(rules.cordon, asked, place(*chats("n0/0"))) == ([] if fits else ["chat/0"])
