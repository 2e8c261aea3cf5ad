"""From a plan to the replicas to start: which node and devices, which command, which resources.

Ray packs fractions of GPUs itself and would break a feasible plan, so every GPU is a resource of
its own, ``dev:<node>/<index>`` with the amount 1, and a replica takes its part of exactly the
GPUs that the plan names: all of a whole GPU, its memory slices of a MIG GPU, its share's part of
a shared one. Layouts may change later without a restart of Ray's node. ``host:<node>`` says
which machine of the fleet a Ray node is.
"""

import difflib
import json
import shlex
from collections.abc import Mapping, Sequence

from optimizer.domain.engine import on
from optimizer.domain.gpu import Gpu
from optimizer.domain.placement import Replica, node_of, replica_order
from optimizer.domain.plan import GpuPlan, Plan
from optimizer.domain.units import MIB_PER_GIB
from optimizer.domain.words import place, plural
from optimizer.engines import PORT, CannotRun, EngineCommand, Settings, checkpoint, command
from optimizer.launch.values import AUTO, SIMULATED, Known, LaunchRefused, Patience, ReplicaSpec

# Ray counts in steps of 1e-4; rounding down keeps the parts of one GPU within it.
STEP = 10_000
HOST_PART = 1 / STEP
SEPARATOR = ":"


def device(replica: Replica, gpu: str) -> str:
    """``n1/0``, or ``n1/3:3g.40gb@4`` for a MIG instance."""
    if replica.mig is None:
        return gpu
    return f"{gpu}{SEPARATOR}{replica.mig.profile}@{replica.mig.start}"


def device_resource(gpu: str) -> str:
    """The name of a GPU among Ray's resources."""
    return f"dev:{gpu}"


def host_resource(node: str) -> str:
    """The name of a node among Ray's resources."""
    return f"host:{node}"


def select(plan: Plan, only: str | None) -> tuple[Replica, ...]:
    """The replicas of a tenant, a deployment or one replica id; all without ``only``.

    In the order of their ids. Raises LaunchRefused when there is nothing of that name.
    """
    tenants = {d.name: d.tenant for d in plan.deployments}
    chosen = sorted(plan.placement.replicas, key=lambda r: replica_order(r.id))
    if only is not None:
        names = {only}
        chosen = [r for r in chosen if names & {r.id, r.deployment, tenants.get(r.deployment, "")}]
    if chosen:
        return tuple(chosen)
    if only is None:
        raise LaunchRefused("the plan places no replica; there is nothing to launch")
    known = sorted({*tenants, *tenants.values()})
    close = difflib.get_close_matches(only, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"
    if only in known:
        raise LaunchRefused(f"the plan places no replica of {only!r}")
    raise LaunchRefused(f"the plan has no tenant or deployment {only!r}{hint}")


def specify(
    plan: Plan,
    replicas: Sequence[Replica],
    *,
    simulated: bool,
    known: Known | None = None,
    run: str = "",
    patience: Patience | None = None,
    faults: Mapping[str, str] | None = None,
    log_folder: str | None = None,
) -> tuple[ReplicaSpec, ...]:
    """What to start for each replica. Raises LaunchRefused with every reason against it."""
    known, faults = known or Known(), faults or {}
    gpus = {g.id: g for g in plan.gpus}
    tenants = {d.name: d.tenant for d in plan.deployments}
    specs, reasons = [], clashes(replicas)
    for replica in replicas:
        missing = [g for g in replica.gpus if g not in gpus]
        if missing or not replica.gpus:
            reasons.append(f"{replica.id}: the plan has no GPU {', '.join(missing) or 'for it'}")
            continue
        if len(replica.nodes) > 1:
            nodes = " and ".join(replica.nodes)
            reasons.append(f"{replica.id} spans {nodes}; launching over nodes is not supported yet")
            continue
        try:
            if simulated:
                engine = simulated_command(plan, replica, known, faults.get(replica.id))
            else:
                engine = engine_command(replica, gpus[replica.gpus[0]], known)
        except CannotRun as refusal:
            reasons.append(str(refusal))
            continue
        devices = tuple(device(replica, gpu) for gpu in replica.gpus)
        specs.append(
            ReplicaSpec(
                id=replica.id,
                deployment=replica.deployment,
                tenant=tenants.get(replica.deployment, "default"),
                fleet=plan.fleet,
                run=run,
                node=replica.nodes[0],
                devices=devices,
                visible=_visible(replica, devices),
                resources=resources(replica, gpus),
                engine=SIMULATED if simulated else str(replica.config.engine),
                argv=engine.argv,
                env=engine.env,
                health=engine.health,
                patience=patience or Patience(),
                log_folder=log_folder,
            )
        )
    if reasons:
        raise LaunchRefused(*reasons)
    return tuple(specs)


def clashes(replicas: Sequence[Replica]) -> list[str]:
    """Devices that two replicas would hold at once, though neither is a share."""
    holders: dict[str, list[str]] = {}
    for replica in replicas:
        for gpu in replica.gpus if replica.share is None else ():
            holders.setdefault(device(replica, gpu), []).append(replica.id)
    return [
        f"{' and '.join(ids)} are both placed on {name}"
        for name, ids in sorted(holders.items())
        if len(ids) > 1
    ]


def resources(replica: Replica, gpus: Mapping[str, GpuPlan]) -> tuple[tuple[str, float], ...]:
    """Ray's resources that hold a replica to its node and devices."""
    parts = [(device_resource(g), _part(replica, gpus[g])) for g in replica.gpus]
    return ((host_resource(replica.nodes[0]), HOST_PART), *parts)


def _part(replica: Replica, gpu: GpuPlan) -> float:
    """The part of one GPU that the replica takes, in Ray's steps, rounded down."""
    if replica.share is not None:
        part = replica.share.memory_mib * STEP // max(1, gpu.room.memory_mib)
    elif replica.mig is not None:
        slices = [i.memory_slices for i in gpu.instances if i.placed == replica.mig]
        if slices and slices[0] and gpu.memory_slices:
            part = slices[0] * STEP // gpu.memory_slices
        else:
            part = STEP // max(1, len(gpu.instances))
    else:
        part = STEP
    return min(STEP, max(1, part)) / STEP


def _visible(replica: Replica, devices: Sequence[str]) -> str:
    """What CUDA_VISIBLE_DEVICES says; a MIG instance goes by the plan's name until its UUID is
    asked on the node, so that nothing else can be seen meanwhile."""
    if replica.mig is not None:
        return ",".join(devices)
    return ",".join(gpu.rpartition("/")[2] for gpu in replica.gpus)


def engine_command(replica: Replica, gpu: GpuPlan, known: Known) -> EngineCommand:
    """The real engine's command line. Raises CannotRun."""
    if replica.config.engine is None:
        raise CannotRun(
            f"{replica.id}: the plan names no engine for it, so there is no command line; "
            "leave it out with --only, or use --engine simulated"
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


def simulated_command(
    plan: Plan, replica: Replica, known: Known, fault: str | None
) -> EngineCommand:
    """The simulated engine's command line: the predicted times and the plan's batch limits."""
    flags = ["python3", "-m", "optimizer.launch.simulated", "--port", PORT]
    flags += ["--served-model-name", replica.deployment]
    deployment = known.deployments.get(replica.deployment)
    if deployment is not None:
        task = "predict" if deployment.model is None else deployment.model.task
        flags += ["--task", task]
        if deployment.demand is not None and deployment.demand.output_tokens:
            flags += ["--output-tokens", str(deployment.demand.output_tokens)]
    predicted = next((d.predicted for d in plan.deployments if d.name == replica.deployment), None)
    if predicted is not None:
        said = {
            "--ttft-ms": _first(predicted.ttft_ms, predicted.ttft_mean_ms),
            "--tpot-ms": _first(predicted.tpot_ms, predicted.tpot_mean_ms),
        }
        flags += [part for flag, value in said.items() if value for part in (flag, f"{value:g}")]
    config = replica.config
    limits = {"--max-num-seqs": config.max_num_seqs, "--max-model-len": config.max_model_len}
    flags += [part for flag, value in limits.items() if value for part in (flag, str(value))]
    if fault:
        flags += ["--fault", fault]
    return EngineCommand(tuple(flags))


def _first(*values: float | None) -> float | None:
    return next((v for v in values if v is not None), None)


def preview(
    plan: Plan, only: str | None = None, *, engine: str = AUTO, known: Known | None = None
) -> tuple[str, ...]:
    """The steps of a launch, one a line, in their order; nothing is done.

    Raises LaunchRefused where ``launch`` would before it looks at any cluster.
    """
    replicas = select(plan, only)
    specs = specify(plan, replicas, simulated=engine == SIMULATED, known=known)
    nodes = sorted({spec.node for spec in specs})
    devices = sorted({d for spec in specs for d in spec.devices})
    lines = [
        f"check that Ray offers {plural(len(devices), 'device')} on "
        f"{plural(len(nodes), 'node')}: {', '.join(nodes)}"
    ]
    for replica, spec in zip(replicas, specs, strict=True):
        lines.append(
            f"start {spec.id} on {place(replica)}: {shlex.join(spec.argv)}".replace(
                f"'{PORT}'", "PORT"
            )
        )
    lines.append(f"wait until {plural(len(specs), 'replica')} answer{'s' * (len(specs) == 1)}")
    return tuple(lines)


def declared(plan: Plan, node: str | None = None) -> dict[str, float]:
    """Ray's resources of the plan's GPUs, and of the nodes that hold them; of one node if named."""
    found = {}
    for gpu in plan.gpus:
        home = node_of(gpu.id)
        if node in (None, home):
            found[host_resource(home)] = 1.0
            found[device_resource(gpu.id)] = 1.0
    return dict(sorted(found.items()))


def node_setup(plan: Plan, head: str = "HEAD:6379") -> tuple[str, ...]:
    """The ``ray start`` line of each node of the plan, by node; ``head`` is the cluster's address.

    Ray decides with it what may run where; the devices themselves it neither finds nor counts.
    """
    nodes = sorted({node_of(gpu.id) for gpu in plan.gpus})
    lines = []
    for node in nodes:
        said = json.dumps({name: int(amount) for name, amount in declared(plan, node).items()})
        line = ["ray", "start", f"--address={head}", f"--resources={said}"]
        lines.append(f"{node}: RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token {shlex.join(line)}")
    return tuple(lines)
