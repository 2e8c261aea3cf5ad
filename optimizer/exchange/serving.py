"""Replicas grouped by how and where they run, as cluster manifests want them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from optimizer.domain.placement import Replica, replica_order
from optimizer.domain.plan import DeploymentPlan, GpuPlan, Plan
from optimizer.engines import CannotRun, EngineCommand, engine_command
from optimizer.exchange.artifact import CannotExport, Source
from optimizer.exchange.kube_names import dns_label

PORT = 8000
PUBLIC_IMAGES = {"vllm": "vllm/vllm-openai:v{version}", "sglang": "lmsysorg/sglang:v{version}"}


@dataclass(frozen=True, slots=True)
class Group:
    """Replicas of one deployment that run alike on one node."""

    name: str
    deployment: str
    tenant: str
    node: str
    product: str
    replicas: tuple[Replica, ...]
    strategy: str = "mixed"
    served: EngineCommand | None = None  # None: what runs there is no engine of ours
    model_id: str = ""

    @property
    def first(self) -> Replica:
        """One that speaks for all."""
        return self.replicas[0]

    @property
    def ids(self) -> str:
        """The replicas by name, and the verb of a sentence about them."""
        ids = [r.id for r in self.replicas]
        return f"{', '.join(ids)} {'is' if len(ids) == 1 else 'are'}"

    @property
    def command(self) -> EngineCommand:
        """The engine's command line."""
        assert self.served is not None
        return self.served

    @property
    def resource(self) -> tuple[str, int]:
        """The device plugin's name of what one replica takes, and how many."""
        if self.first.mig is not None and self.strategy != "single":
            return f"nvidia.com/mig-{self.first.mig.profile.replace('+', '.')}", 1
        return "nvidia.com/gpu", len(self.first.gpus)


def groups(source: Source, *, pods: bool = False) -> tuple[list[Group], list[str]]:
    """Every group of the plan, and a note on each replica that a manifest cannot carry.

    With ``pods``, deployments without an engine are carried where a running pod shows how.
    """
    tenants = {d.name: d.tenant for d in source.plan.deployments}
    gpus = {g.id: g for g in source.plan.gpus}
    found: list[Group] = []
    notes: list[str] = []
    for name, run in groupby(_ordered(source.plan), lambda r: r.deployment):
        able = []
        for replica in run:
            why = cannot(source, replica, pods=pods)
            if why is None:
                able.append(replica)
            else:
                notes.append(f"{replica.id} is left out: {why}")
        alike = sorted(able, key=lambda r: (_likeness(r, gpus), replica_order(r.id)))
        for number, (_, members) in enumerate(groupby(alike, lambda r: _likeness(r, gpus))):
            replicas = tuple(members)
            found.append(
                _group(source, f"{name}-{number}", tenants.get(name, "default"), replicas, gpus)
            )
    return found, notes


def _ordered(plan: Plan) -> Iterator[Replica]:
    yield from sorted(plan.placement.replicas, key=lambda r: replica_order(r.id))


def _likeness(replica: Replica, gpus: Mapping[str, GpuPlan]) -> tuple[str, str, int, str]:
    profile = replica.mig.profile if replica.mig else ""
    return (replica.nodes[0], profile, len(replica.gpus), repr(replica.config))


def _group(
    source: Source,
    name: str,
    tenant: str,
    replicas: tuple[Replica, ...],
    gpus: Mapping[str, GpuPlan],
) -> Group:
    first = replicas[0]
    gpu = gpus[first.gpus[0]]
    group = Group(
        name=dns_label(name),
        deployment=first.deployment,
        tenant=tenant,
        node=first.nodes[0],
        product=gpu.gpu,
        replicas=replicas,
        strategy=source.strategy(first.nodes[0]),
    )
    if first.config.engine is None:
        return group
    command = engine_command(first, gpu, source.known).on(PORT)
    return replace(group, served=command, model_id=_model_id(source, first))


def _model_id(source: Source, replica: Replica) -> str:
    from optimizer.engines import checkpoint

    model = source.known.deployments[replica.deployment].model
    assert model is not None
    return checkpoint(model, replica.config.precision).id


def cannot(source: Source, replica: Replica, *, pods: bool = False) -> str | None:
    """Why no manifest can carry the replica; None when one can."""
    if replica.share is not None:
        return "it takes a share of a GPU, and Kubernetes hands out whole devices and MIG slices"
    if len(replica.nodes) > 1:
        return f"it spans the nodes {' and '.join(replica.nodes)}"
    if replica.config.engine is None:
        if pods and replica.deployment in source.pods:
            return None
        way = "; give what runs now with --pods FILE (kubectl get nodes,pods -A -o json)"
        return f"no engine serves it{way if pods else ''}"
    gpus = {g.id: g for g in source.plan.gpus}
    try:
        engine_command(replica, gpus[replica.gpus[0]], source.known)
    except CannotRun as refusal:
        return str(refusal).removeprefix(f"{replica.id}: ")
    return None


def image(source: Source, group: Group) -> str:
    """The container image of the group's engine. Raises CannotExport when none is known."""
    engine = group.first.config.engine or ""
    if engine in source.images:
        return source.images[engine]
    if engine not in PUBLIC_IMAGES:
        raise CannotExport(f"no container image of {engine} is known; say --image {engine}=IMAGE")
    version = group.first.config.engine_version or "latest"
    return PUBLIC_IMAGES[engine].format(version=version).replace(":vlatest", ":latest")


def deployment_plan(source: Source, name: str) -> DeploymentPlan:
    """The plan's part of a deployment."""
    return next(d for d in source.plan.deployments if d.name == name)
