"""Deployments that are not LLMs: what they need is given, or how fast they run was measured."""

from collections.abc import Mapping, Sequence

from optimizer.domain.config import Candidate, Dropped, Prediction
from optimizer.domain.fleet import Sharing
from optimizer.domain.gpu import Gpu, Use
from optimizer.domain.placement import Replica
from optimizer.domain.units import MIB_PER_GIB, PPM, ceil_div, gib
from optimizer.domain.workload import Deployment, MeasuredOption, Needs
from optimizer.sizing.performance import peak_tflops
from optimizer.sizing.rooms import Product, Room, mig_room, mig_rooms, share_room, whole_room

UNKNOWN_LOAD_MIB = MIB_PER_GIB  # what a start loads where nobody said


def candidates(
    deployment: Deployment, offered: Sequence[Product], gpus: Mapping[str, Gpu]
) -> tuple[list[Candidate], list[Dropped]]:
    """Candidates of a deployment by ``needs`` or ``measured``, and refusals with reasons.

    ``gpus``: datasheets by name, for the product that needs were measured on.
    """
    kept: list[Candidate] = []
    dropped: list[Dropped] = []
    for product in offered:
        if deployment.needs is None:
            _by_measurement(deployment, product, kept, dropped)
        elif deployment.needs.memory_mib is None:
            _by_room(deployment, deployment.needs, product, kept, dropped)
        else:
            _by_needs(deployment, deployment.needs, product, gpus, kept, dropped)
    return kept, dropped


def needed(needs: Needs, gpu: Gpu, gpus: Mapping[str, Gpu]) -> Use | str:
    """What one replica takes of that product, or why that cannot be said.

    Compute is a part of ``measured_on``'s SMs, scaled by dense bf16 peak to this product's.
    """
    compute = needs.compute_ppm
    if needs.measured_on is not None and needs.measured_on != gpu.name and compute:
        source = gpus.get(needs.measured_on)
        there = peak_tflops(source, "bf16") if source else None
        here = peak_tflops(gpu, "bf16")
        if there is None or here is None:
            return f"no dense bf16 peak to scale from {needs.measured_on} to {gpu.name}"
        compute = ceil_div(compute * round(there * 1000), round(here * 1000))
    return Use(needs.memory_mib or 0, needs.bandwidth_mbs, compute)


def lacking(need: Use, room: Use) -> str | None:
    """Which need a room does not meet, in numbers, or None."""
    if need.memory_mib > room.memory_mib:
        return f"needs {gib(need.memory_mib):.1f} GiB, has {gib(room.memory_mib):.1f} GiB"
    if need.bandwidth_mbs > room.bandwidth_mbs:
        return f"needs {need.bandwidth_mbs / 1000:g} GB/s, has {room.bandwidth_mbs / 1000:g} GB/s"
    if need.compute_ppm > room.compute_ppm:
        return f"needs {need.compute_ppm / PPM:.2f} of the SMs, has {room.compute_ppm / PPM:.2f}"
    return None


def _modes(deployment: Deployment, product: Product) -> list[Sharing]:
    allowed = deployment.allow.sharing
    return [m for m in product.sharing if allowed is None or m.value in allowed]


def _by_needs(
    deployment: Deployment,
    needs: Needs,
    product: Product,
    gpus: Mapping[str, Gpu],
    kept: list[Candidate],
    dropped: list[Dropped],
) -> None:
    """Every slice that meets each need, a share; whole GPUs where a node offers neither."""
    need = needed(needs, product.gpu, gpus)
    if isinstance(need, str):
        dropped.append(Dropped(deployment.name, product.gpu.name, need))
        return
    modes = _modes(deployment, product)
    offered = [*mig_rooms(product.gpu)] if Sharing.MIG in modes else []
    if Sharing.SHARED in modes:
        offered.append(share_room(product.gpu, need))
    served: set[Sharing] = set()
    for room in offered:
        space = product.gpu.room if room.shape.sharing is Sharing.SHARED else room.use
        if _offer(deployment, room, need, space, kept, dropped):
            served.add(room.shape.sharing)
    alone = any(Sharing.WHOLE in n.sharing and not served & set(n.sharing) for n in product.nodes)
    if Sharing.WHOLE in modes and alone:
        room = whole_room(product, 1)
        _offer(deployment, room, need, room.use, kept, dropped)


def _offer(
    deployment: Deployment,
    room: Room,
    need: Use,
    space: Use,
    kept: list[Candidate],
    dropped: list[Dropped],
) -> bool:
    reason = lacking(need, space)
    if reason is not None:
        dropped.append(Dropped(deployment.name, room.name, reason))
        return False
    kept.append(_candidate(deployment, room, need))
    return True


def _candidate(deployment: Deployment, room: Room, use: Use) -> Candidate:
    said = f"{room.name}: takes {gib(use.memory_mib):.1f} GiB of {gib(room.use.memory_mib):.1f}"
    known = deployment.needs.memory_mib if deployment.needs else None
    return Candidate(
        deployment=deployment.name,
        gpu=room.gpu.name,
        shape=room.shape,
        use=use,
        load_mib=known or UNKNOWN_LOAD_MIB,
        reasons=(said,),
    )


def _by_room(
    deployment: Deployment,
    needs: Needs,
    product: Product,
    kept: list[Candidate],
    dropped: list[Dropped],
) -> None:
    """A MIG profile by name, whole GPUs by number, or a part of a GPU: just that room."""
    room = _named_room(deployment, needs, product)
    if isinstance(room, str):
        dropped.append(Dropped(deployment.name, product.gpu.name, room))
    else:
        kept.append(_candidate(deployment, room, room.use))


def _named_room(deployment: Deployment, needs: Needs, product: Product) -> Room | str:
    modes = _modes(deployment, product)
    if needs.mig_profile is not None:
        if Sharing.MIG not in modes:
            return "no MIG allowed here"
        found = mig_room(product.gpu, needs.mig_profile)
        return found or f"no profile {needs.mig_profile} of known memory"
    if needs.gpus is not None:
        if Sharing.WHOLE not in modes:
            return "no whole GPUs allowed here"
        largest = product.largest_group()
        if needs.gpus > largest:
            return f"needs {needs.gpus} GPUs of one node, the largest has {largest}"
        return whole_room(product, needs.gpus)
    if Sharing.SHARED not in modes:
        return "no shared GPUs allowed here"
    return share_room(product.gpu, product.gpu.fraction(needs.gpu_ppm or 0))


def _by_measurement(
    deployment: Deployment, product: Product, kept: list[Candidate], dropped: list[Dropped]
) -> None:
    """Each measured way on this product, with its own rate."""
    options = [o for o in deployment.measured if o.gpu == product.gpu.name]
    if not options:
        dropped.append(Dropped(deployment.name, product.gpu.name, "not measured there"))
    for option in options:
        room = _measured_room(deployment, option, product)
        if isinstance(room, str):
            dropped.append(Dropped(deployment.name, _option_name(option), room))
            continue
        limit = deployment.slo.ttft_ms if deployment.slo else None
        if limit is not None and option.latency_ms is not None and option.latency_ms > limit:
            reason = f"latency {option.latency_ms:g} ms measured, SLO {limit:g} ms"
            dropped.append(Dropped(deployment.name, _option_name(option), reason))
            continue
        kept.append(_measured_candidate(deployment, option, room))


def _option_name(option: MeasuredOption) -> str:
    return f"{option.gpu} {option.mig_profile or f'{option.gpus} GPU'}"


def _measured_room(deployment: Deployment, option: MeasuredOption, product: Product) -> Room | str:
    needs = Needs(mig_profile=option.mig_profile) if option.mig_profile else Needs(gpus=option.gpus)
    return _named_room(deployment, needs, product)


def _measured_candidate(deployment: Deployment, option: MeasuredOption, room: Room) -> Candidate:
    latency = option.latency_ms
    return Candidate(
        deployment=deployment.name,
        gpu=room.gpu.name,
        shape=room.shape,
        use=room.use,
        capacity_mrps=option.rate_mrps,
        load_mib=UNKNOWN_LOAD_MIB,
        predicted=Prediction(ttft_mean_ms=latency) if latency is not None else None,
        reasons=(f"{room.name}: {option.rate_mrps / 1000:g} requests/s measured",),
    )


def running(
    deployment: Deployment, room: Room, replica: Replica, gpus: Mapping[str, Gpu]
) -> Candidate | None:
    """The candidate that a replica runs as today, where its room still meets the needs."""
    needs = deployment.needs
    if needs is None:
        rates = [
            _measured_candidate(deployment, option, room)
            for option in deployment.measured
            if option.gpu == room.gpu.name
            and option.mig_profile == room.shape.profile
            and option.gpus == len(replica.gpus)
        ]
        return rates[0] if rates else None
    if needs.memory_mib is None:
        return None  # a named room is offered wherever it is legal
    need = needed(needs, room.gpu, gpus)
    if isinstance(need, str) or lacking(need, room.use) is not None or room.shape.gpus > 1:
        return None
    use = room.use if room.shape.sharing is Sharing.SHARED else need
    return _candidate(deployment, room, use)
