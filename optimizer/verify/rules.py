"""The rules a placement must keep, stated a second time: nothing here has met the solver.

Each rule is one function of its own name; it yields every violation it sees. Here are the rules
about replicas and where they run; ``fleet_rules`` has those about the fleet as a whole, and
``judge.RULES`` is the table of contents.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from optimizer.domain.fleet import Node, Sharing
from optimizer.domain.placement import Replica
from optimizer.domain.workload import Deployment
from optimizer.verify.facts import (
    Facts,
    Running,
    Violation,
    current_replicas,
    room_of,
    stays,
)
from optimizer.verify.slots import layout_faults

Rule = Callable[[Facts], Iterator[Violation]]


def identity(facts: Facts) -> Iterator[Violation]:
    """Every replica has an id of its own, a known deployment and known GPUs."""
    counts = Counter(r.id for r in facts.placement.replicas)
    for id, count in counts.items():
        if count > 1:
            yield Violation("identity", id, f"{count} replicas have this id")
    for one in facts.running:
        id, name = one.replica.id, one.replica.deployment
        prefix, _, number = id.rpartition("/")
        if prefix != name or not number.isdigit():
            yield Violation("identity", id, f"an id of {name} reads {name}/<number>")
        if one.deployment is None:
            yield Violation("identity", id, f"no deployment {name}")
        for gpu in one.replica.gpus:
            if gpu not in facts.ground.gpus:
                yield Violation("identity", id, f"no GPU {gpu}")
    for gpu in facts.standing:
        if gpu not in facts.ground.gpus:
            yield Violation("identity", gpu, "an empty instance stands on a GPU nobody knows")


def slot_legality(facts: Facts) -> Iterator[Violation]:
    """A GPU is in one mode that its node allows, and its MIG instances form a legal layout."""
    for one in facts.running:
        fault = _form_fault(one.replica)
        if fault:
            yield Violation("slot_legality", one.replica.id, fault)
    known: dict[tuple[object, ...], list[str]] = {}
    for id in dict.fromkeys([*facts.on_gpu, *facts.standing]):
        gpu = facts.ground.gpus.get(id)
        if gpu is None:
            continue
        running = facts.on_gpu.get(id, [])
        empty = facts.standing.get(id, [])
        for fault in _mode_faults(gpu.node, running, len(empty)):
            yield Violation("slot_legality", id, fault)
        layout = sorted([*empty, *(r.replica.mig for r in running if r.replica.mig)])
        key = (gpu.gpu.name, *layout)
        if key not in known:
            known[key] = layout_faults(gpu.gpu, layout) if layout else []
        for fault in known[key]:
            yield Violation("slot_legality", id, fault)


def _form_fault(replica: Replica) -> str | None:
    if replica.mig is not None and replica.share is not None:
        return "holds a MIG instance and a share at once"
    if not replica.gpus:
        return "names no GPU"
    if len(set(replica.gpus)) < len(replica.gpus):
        return f"names a GPU twice: {', '.join(replica.gpus)}"
    if len(replica.gpus) > 1 and replica.shape.sharing is not Sharing.WHOLE:
        return f"a {replica.shape.sharing} replica lies on one GPU, not on {len(replica.gpus)}"
    return None


def _mode_faults(node: Node, running: list[Running], empty: int) -> Iterator[str]:
    modes = sorted({r.replica.shape.sharing for r in running})
    for used in modes:
        if used not in node.sharing:
            yield f"is used {used}, node {node.name} allows {', '.join(node.sharing)}"
    if len(modes) > 1:
        yield f"is used {' and '.join(modes)} at once"
    whole = [r.replica.id for r in running if r.replica.shape.sharing is Sharing.WHOLE]
    if len(whole) > 1:
        yield f"is held whole by {len(whole)} replicas: {', '.join(sorted(whole))}"
    if empty and modes and modes != [Sharing.MIG]:
        yield f"is used {modes[0]} while {empty} empty MIG instances stand on it"


def device_memory(facts: Facts) -> Iterator[Violation]:
    """The memory that replicas need fits their instance, their GPUs and the shares of a GPU."""
    return _within(facts, "device_memory", "memory_mib", "MiB")


def device_bandwidth(facts: Facts) -> Iterator[Violation]:
    """The memory bandwidth that replicas need fits likewise."""
    return _within(facts, "device_bandwidth", "bandwidth_mbs", "MB/s")


def device_compute(facts: Facts) -> Iterator[Violation]:
    """The part of the SMs that replicas need fits likewise."""
    return _within(facts, "device_compute", "compute_ppm", "ppm of the SMs")


def _within(facts: Facts, rule: str, figure: str, unit: str) -> Iterator[Violation]:
    for one in facts.running:
        if one.candidate is None or not one.devices:
            continue
        need = getattr(one.candidate.use, figure)
        room = room_of(one.replica, one.devices[0].gpu)
        if room is None:
            if need and not one.candidate.running_only:
                yield Violation(rule, one.replica.id, f"needs {need} {unit}, its room is unknown")
        elif need > getattr(room, figure):
            given = getattr(room, figure)
            yield Violation(rule, one.replica.id, f"needs {need} {unit}, its room has {given}")
    for id, running in facts.on_gpu.items():
        shares = [getattr(r.replica.share, figure) for r in running if r.replica.share]
        room = getattr(facts.ground.gpus[id].gpu.room, figure)
        if sum(shares) > room:
            said = f"{len(shares)} shares take {sum(shares)} {unit}, the GPU has {room}"
            yield Violation(rule, id, said)


def host_cpu(facts: Facts) -> Iterator[Violation]:
    """The cores of the replicas on a node are at most the node's."""
    return _on_host(
        facts,
        "host_cpu",
        lambda node: node.cpu_millicores,
        lambda deployment: deployment.host_cpu_millicores,
        "thousandths of a core",
    )


def host_memory(facts: Facts) -> Iterator[Violation]:
    """The host memory of the replicas on a node is at most the node's."""
    return _on_host(
        facts,
        "host_memory",
        lambda node: node.host_memory_mib,
        lambda deployment: deployment.host_memory_mib,
        "MiB",
    )


def _on_host(
    facts: Facts,
    rule: str,
    room_of_node: Callable[[Node], int | None],
    need_of: Callable[[Deployment], int],
    unit: str,
) -> Iterator[Violation]:
    for name, running in facts.on_node.items():
        room = room_of_node(facts.ground.nodes[name])
        need = sum(need_of(r.deployment) for r in running if r.deployment)
        if room is not None and need > room:
            said = f"{len(running)} replicas need {need} {unit}, the node has {room}"
            yield Violation(rule, name, said)


def network_bandwidth(facts: Facts) -> Iterator[Violation]:
    """What pipelines that lie in several nodes hand over is at most each node's network.

    Stages follow each other from node to node, so in each direction a node's link carries one
    boundary of such a replica: its tokens per second times what a token's activations take.
    """
    for name, running in facts.on_node.items():
        room = facts.ground.nodes[name].network_mbs
        across = [r.candidate.network_mbs for r in running if r.candidate and len(r.nodes) > 1]
        if room is not None and sum(across) > room:
            said = f"{len(across)} pipelines hand over {sum(across)} MB/s, its network has {room}"
            yield Violation("network_bandwidth", name, said)


def interconnect(facts: Facts) -> Iterator[Violation]:
    """A tensor-parallel group lies in one node, and in one bridged pair where it fits in one.

    The stages of a pipeline lie evenly over its nodes: engines start as many ranks on each.
    """
    for one in facts.running:
        gpus = len(one.devices)
        if gpus < 2:
            continue
        config = one.replica.config
        # Where the settings do not say how the GPUs are grouped, they are one group.
        staged = config.tensor_parallel * config.pipeline_parallel == gpus
        group = config.tensor_parallel if staged else gpus
        parts: Counter[str] = Counter()
        for device in one.devices:
            pair = device.node.nvlink_domain == "pair" and group == 2
            inside = f"{device.node.name}/pair {device.device.index // 2}" if pair else ""
            parts[inside or device.node.name] += 1
        torn = sorted(part for part, count in parts.items() if count % group)
        each = Counter(device.node.name for device in one.devices)
        said = ""
        if torn:
            said = f"a group of {group} GPUs is torn: {', '.join(one.replica.gpus)}"
        elif len(set(each.values())) > 1:
            said = f"its stages lie unevenly over nodes: {', '.join(one.replica.gpus)}"
        if said:
            yield Violation("interconnect", one.replica.id, said)


def demand_met(facts: Facts) -> Iterator[Violation]:
    """Demand may give way, so this is never broken: what is missing is counted as unmet."""
    return iter(())


def replica_bounds(facts: Facts) -> Iterator[Violation]:
    """No more replicas than the most that may run; without demand, no more than asked for."""
    for deployment in facts.problem.deployments:
        limit, count = deployment.replica_limit, len(facts.replicas(deployment))
        if limit is not None and count > limit:
            yield Violation("replica_bounds", deployment.name, f"{count} replicas, most {limit}")


def spread(facts: Facts) -> Iterator[Violation]:
    """A node and a rack hold at most so many replicas of a deployment."""
    for deployment in facts.problem.deployments:
        limits = (("node", deployment.spread_node), ("rack", deployment.spread_rack))
        for kind, limit in limits:
            if limit is None:
                continue
            counts = Counter(
                name for one in facts.replicas(deployment) for name in _domains(one, kind)
            )
            for name, count in counts.items():
                if count > limit:
                    said = f"{count} replicas in {kind} {name}, at most {limit}"
                    yield Violation("spread", deployment.name, said)


def _domains(one: Running, kind: str) -> set[str]:
    """The nodes, racks or zones that a replica touches."""
    if kind == "node":
        return {node.name for node in one.nodes}
    if kind == "rack":
        return {node.rack_domain for node in one.nodes}
    return {node.zone_domain for node in one.nodes}


def survive(facts: Facts) -> Iterator[Violation]:
    """After the loss of any one node, rack or zone the replicas left still carry the demand."""
    for deployment in facts.problem.deployments:
        asked = deployment.asked_mrps
        if deployment.survive is None or not asked:
            continue
        running = facts.replicas(deployment)
        served = sum(one.capacity_mrps for one in running)
        lost: Counter[str] = Counter()
        for one in running:
            for name in _domains(one, deployment.survive):
                lost[name] += one.capacity_mrps
        if served < asked:
            said = f"{served} of {asked} mrps are served before any loss"
            yield Violation("survive", deployment.name, said)
            continue
        for name, gone in lost.items():
            if served - gone < asked:
                said = f"without {deployment.survive} {name} {served - gone} of {asked} mrps"
                yield Violation("survive", deployment.name, said)


def isolation(facts: Facts) -> Iterator[Violation]:
    """Who asks for isolation shares its GPUs, or its nodes, with nobody it must not."""
    for deployment in facts.problem.deployments:
        if deployment.isolate == "none":
            continue
        own = facts.replicas(deployment)
        if deployment.isolate == "node":
            places = {n.name: facts.on_node[n.name] for one in own for n in one.nodes}
        else:
            places = {d.id: facts.on_gpu[d.id] for one in own for d in one.devices}
        for place, running in places.items():
            met = sorted(r.replica.id for r in running if _strange(deployment, r))
            if met:
                said = f"{deployment.name} (isolate: {deployment.isolate}) meets {', '.join(met)}"
                yield Violation("isolation", place, said)


def _strange(deployment: Deployment, other: Running) -> bool:
    if other.replica.deployment == deployment.name:
        return False
    if deployment.isolate == "gpu" or other.deployment is None:
        return True
    return other.deployment.tenant != deployment.tenant


def anti_affinity(facts: Facts) -> Iterator[Violation]:
    """Deployments that avoid each other, whichever says so, never share a GPU."""
    pairs = {
        tuple(sorted((d.name, other)))
        for d in facts.problem.deployments
        for other in d.avoid
        if other != d.name
    }
    if not pairs:
        return
    for id, running in facts.on_gpu.items():
        here = {r.replica.deployment for r in running}
        for one, other in sorted(pairs):
            if one in here and other in here:
                yield Violation("anti_affinity", id, f"{one} and {other} avoid each other")


def affinity(facts: Facts) -> Iterator[Violation]:
    """A node of each replica holds at least one replica of each deployment it wants near."""
    for deployment in facts.problem.deployments:
        for wanted in deployment.near:
            for one in facts.replicas(deployment):
                held = [
                    r
                    for n in one.nodes
                    for r in facts.on_node[n.name]
                    if r.replica.deployment == wanted
                ]
                if not held:
                    nodes = ", ".join(one.replica.nodes)
                    said = f"0 replicas of {wanted} on {nodes}"
                    yield Violation("affinity", one.replica.id, said)


def pin(facts: Facts) -> Iterator[Violation]:
    """A pinned replica has all its GPUs among the nodes and GPUs named."""
    for deployment in facts.problem.deployments:
        if not deployment.pin:
            continue
        inside = set(deployment.pin)
        for one in facts.replicas(deployment):
            outside = [d.id for d in one.devices if not inside & {d.id, d.node.name}]
            if outside:
                said = f"runs on {', '.join(outside)}, pinned to {', '.join(deployment.pin)}"
                yield Violation("pin", one.replica.id, said)


def allowed(facts: Facts) -> Iterator[Violation]:
    """Every replica runs as one of its deployment's candidates; a new one as one on offer."""
    current = current_replicas(facts.problem)
    for one in facts.running:
        if one.deployment is None or not one.devices:
            continue
        products = sorted({d.gpu.name for d in one.devices})
        if one.candidate is None:
            count = len(facts.problem.candidates.get(one.deployment.name, ()))
            what = f"{_described(one.replica)} on {', '.join(products)}"
            said = f"{what} is none of the {count} candidates"
            yield Violation("allowed", one.replica.id, said)
        elif one.candidate.running_only and not stays(one.replica, current):
            what = f"{_described(one.replica)} on {products[0]}"
            said = f"{what} is kept for replicas that stay, not offered to new ones"
            yield Violation("allowed", one.replica.id, said)


def _described(replica: Replica) -> str:
    if replica.mig is not None:
        return f"a {replica.mig.profile}"
    if replica.share is not None:
        return f"a share of {replica.share.memory_mib} MiB"
    return f"{len(replica.gpus)} whole GPU(s)"


def cordon(facts: Facts) -> Iterator[Violation]:
    """Nothing runs on a cordoned GPU or node."""
    for one in facts.running:
        for device in one.devices:
            if device.cordoned:
                which = "node" if device.node.cordoned else "GPU"
                said = f"runs on {device.id}, a cordoned {which}"
                yield Violation("cordon", one.replica.id, said)
