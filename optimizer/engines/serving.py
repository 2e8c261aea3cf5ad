"""The command line of a plan's replica, from the plan and the documents it was made from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from optimizer.domain.engine import EngineCard, on
from optimizer.domain.gpu import Gpu
from optimizer.domain.placement import Replica
from optimizer.domain.plan import GpuPlan
from optimizer.domain.units import MIB_PER_GIB
from optimizer.domain.workload import Deployment
from optimizer.engines.checkpoint import checkpoint
from optimizer.engines.command import CannotRun, EngineCommand, Settings
from optimizer.engines.programs import command


@dataclass(frozen=True, slots=True)
class Known:
    """What a plan does not carry and engines ask for: deployments, engine cards, datasheets.

    Each by its name. Simulated engines do without.
    """

    deployments: Mapping[str, Deployment] = field(default_factory=dict)
    engines: Mapping[str, EngineCard] = field(default_factory=dict)
    gpus: Mapping[str, Gpu] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        deployments: Iterable[Deployment],
        engines: Mapping[str, EngineCard] | None = None,
        gpus: Mapping[str, Gpu] | None = None,
    ) -> "Known":
        """From deployments in any order."""
        return cls({d.name: d for d in deployments}, engines or {}, gpus or {})


def engine_command(replica: Replica, gpu: GpuPlan, known: Known) -> EngineCommand:
    """The real engine's command line. Raises CannotRun."""
    if replica.config.engine is None:
        raise CannotRun(
            f"{replica.id}: the plan names no engine for it, so there is no command line; "
            "leave it out with --only"
        )
    deployment = known.deployments.get(replica.deployment)
    if deployment is None or deployment.model is None:
        raise CannotRun(f"{replica.id}: nothing says which model {replica.deployment} serves")
    if deployment.extras.draft_model is not None:
        raise CannotRun(f"{replica.id}: launching a draft model is not supported yet")
    weights = checkpoint(deployment.model, replica.config.precision)
    product = known.gpus.get(gpu.gpu)
    device_mib = _device_mib(replica, gpu, product)
    settings = Settings(
        checkpoint_precision=weights.precision,
        task=deployment.model.task,
        device_mib=device_mib,
        max_num_batched_tokens=_batched_tokens(replica, product, device_mib, known),
        lora_count=deployment.extras.lora_count,
        lora_rank=deployment.extras.lora_rank,
    )
    return command(replica, gpu.gpu, weights.id, None, settings)


def _device_mib(replica: Replica, gpu: GpuPlan, product: Gpu | None) -> int:
    """What CUDA reports for one visible device: the GPU, or its MIG slice.

    Without a datasheet a slice's part of the GPU by memory slices.
    """
    if replica.mig is None:
        return gpu.room.memory_mib
    profile = product.mig.profile(replica.mig.profile) if product and product.mig else None
    if profile is not None and profile.memory_mib is not None:
        return profile.memory_mib
    slices = [i.memory_slices for i in gpu.instances if i.placed == replica.mig]
    if not slices or not gpu.memory_slices:
        return gpu.room.memory_mib
    return gpu.room.memory_mib * slices[0] // gpu.memory_slices


def _batched_tokens(
    replica: Replica, product: Gpu | None, device_mib: int, known: Known
) -> int | None:
    """What sizing took for this device: the engine card's default by memory."""
    card = known.engines.get(replica.config.engine or "")
    if card is None or product is None:
        return None
    for row in card.defaults:
        excepted = bool(row.except_gpus) and on(row.except_gpus, product)
        if device_mib >= row.memory_gib_at_least * MIB_PER_GIB and not excepted:
            return row.max_num_batched_tokens
    return None
