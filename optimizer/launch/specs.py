"""From a plan to the replicas to start: which of them, where, by which command."""

import difflib
import shlex
from collections.abc import Mapping, Sequence

from optimizer.domain.placement import Replica, replica_order
from optimizer.domain.plan import GpuPlan, Plan, Step
from optimizer.domain.words import place, plural
from optimizer.engines import (
    MASTER,
    PORT,
    RANK,
    CannotRun,
    EngineCommand,
    Known,
    engine_command,
    nodes_of_group,
)
from optimizer.launch.acts import rebalances
from optimizer.launch.devices import clashes, device, resources
from optimizer.launch.values import (
    AUTO,
    SIMULATED,
    WITHOUT_GPUS,
    LaunchRefused,
    Patience,
    ReplicaSpec,
)


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
    together: bool = True,
) -> tuple[ReplicaSpec, ...]:
    """What to start for each replica. Raises LaunchRefused with every reason against it.

    ``together``: all run at the same time, so that no device may be held twice.
    """
    gpus = {g.id: g for g in plan.gpus}
    tenants = {d.name: d.tenant for d in plan.deployments}
    specs, reasons = [], clashes(replicas) if together else []
    for replica in replicas:
        try:
            _check_place(replica, gpus)
            if simulated:
                fault = (faults or {}).get(replica.id)
                engine = simulated_command(plan, replica, known or Known(), fault)
            else:
                engine = engine_command(replica, gpus[replica.gpus[0]], known or Known())
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
                resources=resources(replica, gpus),
                engine=SIMULATED if simulated else str(replica.config.engine),
                argv=engine.argv,
                others=engine.others,
                env=engine.env,
                health=engine.health,
                patience=patience or Patience(),
                log_folder=log_folder,
                replica=replica,
            )
        )
    if reasons:
        raise LaunchRefused(*reasons, hint=None if simulated else WITHOUT_GPUS)
    return tuple(specs)


def _check_place(replica: Replica, gpus: Mapping[str, GpuPlan]) -> None:
    missing = ", ".join(g for g in replica.gpus if g not in gpus)
    if missing or not replica.gpus:
        raise CannotRun(f"{replica.id}: the plan has no GPU {missing or 'for it'}")
    nodes_of_group(replica)


def simulated_command(
    plan: Plan, replica: Replica, known: Known, fault: str | None
) -> EngineCommand:
    """The simulated engine's command line: the predicted times and the plan's batch limits."""
    program = ["python3", "-m", "optimizer.launch.simulated"]
    flags = [*program, "--port", PORT]
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
    nodes = nodes_of_group(replica)
    if nodes == 1:
        return EngineCommand(tuple(flags))
    group = ["--nnodes", str(nodes), "--node-rank", RANK, "--master", MASTER]
    return EngineCommand(tuple(flags + group), others=tuple(program + group))


def _told(step: Step) -> str:
    what = " ".join(part for part in (step.action, step.replica) if part)
    slot = f":{step.placed.profile}@{step.placed.start}" if step.placed is not None else ""
    mode = "" if step.enable is None else f" {'on' if step.enable else 'off'}"
    after = f" after {', '.join(step.after)}" if step.after else ""
    return f"{step.id}: {what}{mode} on {' and '.join(step.gpus)}{slot}{after}: {step.because}"


def _first(*values: float | None) -> float | None:
    return next((v for v in values if v is not None), None)


def preview(
    plan: Plan, only: str | None = None, *, engine: str = AUTO, known: Known | None = None
) -> tuple[str, ...]:
    """The steps of a launch, one a line, in their order; nothing is done.

    Raises LaunchRefused where ``launch`` would before it looks at any cluster.
    """
    if rebalances(plan):
        if only is not None:
            raise LaunchRefused("a rebalancing plan is carried out whole: --only cannot go with it")
        return tuple(_told(step) for step in plan.steps)
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
