"""The plan as one value: the placement with its prices, predictions, moves, steps and reasons."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Any

from optimizer.domain.config import Candidate, Dropped, Prediction, ReplicaConfig
from optimizer.domain.fleet import FleetGpu
from optimizer.domain.gpu import Use
from optimizer.domain.outcome import Outcome
from optimizer.domain.placement import Placement, Replica
from optimizer.domain.plan import (
    ConfigUse,
    DeploymentPlan,
    GpuPlan,
    PlacedInstance,
    Plan,
    PlanInput,
    PlanRun,
    TenantPrice,
)
from optimizer.domain.prices import held, split
from optimizer.domain.problem import PlacementProblem
from optimizer.domain.workload import Deployment
from optimizer.planning.layout import layouts_after, slices_of
from optimizer.planning.match import Matcher
from optimizer.planning.moves import moves, repartitions
from optimizer.planning.order import Ordered, order
from optimizer.planning.reasons import host_notes, reasons
from optimizer.planning.unmet import unmet

# (deployment, candidate, rate of one replica in mrps) -> what it is predicted to do at that rate
Predict = Callable[[Deployment, Candidate, int], Prediction | None]


def compose(
    problem: PlacementProblem,
    outcome: Outcome,
    *,
    inputs: tuple[PlanInput, ...],
    options: Mapping[str, Any],
    run: PlanRun,
    dropped: Mapping[str, tuple[Dropped, ...]],
    version: str = "",
    predict: Predict | None = None,
    ordered: Ordered | None = None,
    brief: bool = False,
) -> Plan:
    """The plan of an outcome; without an incumbent an empty one that says what is known.

    A ``brief`` one, for whoever only compares, has neither steps nor reasons. ``ordered``: its
    steps, if they are known already.

    ``predict`` answers for a replica at its actual load; without it a deployment shows what
    sizing predicted at full capacity, which is never better.
    """
    found = outcome.incumbent is not None
    placement = (outcome.incumbent or Placement()).in_order()
    sheet = _Sheet(problem, placement)
    changes = moves(problem, placement) if found else ()
    if ordered is None:
        ordered = Ordered() if brief else order(problem, placement, changes)
    prices = sheet.deployment_prices()
    return Plan(
        inputs=inputs,
        options=options,
        fleet=problem.fleet.name,
        unit=problem.fleet.unit,
        status=outcome.termination.value,
        objectives=outcome.objectives,
        run=run,
        placement=placement,
        deployments=tuple(
            sheet.deployment(d, prices, None if brief else dropped.get(d.name, ()), predict)
            for d in problem.deployments
        ),
        gpus=tuple(sheet.gpu(g) for g in problem.fleet.gpus()),
        moves=changes,
        repartitions=repartitions(problem, placement) if found else (),
        steps=ordered.steps,
        left=ordered.left,
        unmet=unmet(problem, placement, dropped) if found else (),
        tenants=sheet.tenants(prices),
        conflict=outcome.conflict,
        notes=(*outcome.notes, *ordered.notes, *host_notes(problem)),
        reproducible=outcome.reproducible,
        certificate=outcome.certificate,
        uses={r.id: sheet.use(r) for r in placement.replicas},
        version=version,
    )


@dataclass(frozen=True, slots=True)
class _Price:
    """What a deployment pays per hour, and the part of it that is unused room; micros."""

    paid: int = 0
    stranded: int = 0

    def __add__(self, other: "_Price") -> "_Price":
        return _Price(self.paid + other.paid, self.stranded + other.stranded)


class _Sheet:
    """One placement on its fleet, read by GPU and by deployment."""

    def __init__(self, problem: PlacementProblem, placement: Placement) -> None:
        self.problem = problem
        self.matcher = Matcher(problem)
        self.layouts = layouts_after(problem, placement)
        self.replicas: dict[str, list[Replica]] = {d.name: [] for d in problem.deployments}
        self.on_gpu: dict[str, list[Replica]] = {}
        self.kept = {gpu for piece in placement.reserved for gpu in piece.gpus}
        for replica in placement.replicas:
            self.replicas.setdefault(replica.deployment, []).append(replica)
            for gpu in replica.gpus:
                self.on_gpu.setdefault(gpu, []).append(replica)

    def gpu(self, gpu: FleetGpu) -> GpuPlan:
        """What that GPU holds."""
        here = self.on_gpu.get(gpu.id, [])
        by_place = {r.mig: r.id for r in here if r.mig is not None}
        mode = here[0].shape.sharing.value if here else "empty"
        return GpuPlan(
            id=gpu.id,
            gpu=gpu.gpu.name,
            mode=mode,
            instances=tuple(
                PlacedInstance(p, by_place.get(p), slices_of(gpu.gpu, p))
                for p in self.layouts.get(gpu.id, ())
            ),
            replicas=tuple(r.id for r in here),
            use=sum((self.use(r) for r in here), Use()),
            room=gpu.gpu.room,
            price_micros=self.problem.fleet.price_micros(gpu.node),
            cordoned=gpu.cordoned,
            memory_slices=0 if gpu.gpu.mig is None else gpu.gpu.mig.memory_slices,
            rack=gpu.node.rack,
        )

    def use(self, replica: Replica) -> Use:
        """What it takes of each of its GPUs."""
        if replica.share is not None:
            return replica.share
        candidate = self.matcher.candidate(replica)
        return candidate.use if candidate is not None else Use()

    def deployment_prices(self) -> dict[str, _Price]:
        """What each deployment pays; together exactly the price of all used GPUs."""
        found = {name: _Price() for name in self.replicas}
        for gpu in self.problem.fleet.gpus():
            here = self.on_gpu.get(gpu.id, [])
            price = self.problem.fleet.price_micros(gpu.node)
            parts = [held(gpu.gpu, r.shape) for r in here]
            paid = split(price, parts)
            stranded = split(int(price * max(Fraction(0), 1 - sum(parts))), parts)
            for replica, pays, unused in zip(here, paid, stranded, strict=True):
                found[replica.deployment] += _Price(pays, unused)
        return found

    def tenants(self, prices: Mapping[str, _Price]) -> tuple[TenantPrice, ...]:
        """What each tenant pays, by name."""
        known = {d.name: d.tenant for d in self.problem.deployments}
        found: dict[str, _Price] = {t: _Price() for t in sorted({*known.values()})}
        for name, price in prices.items():
            tenant = known.get(name, "default")
            found[tenant] = found.get(tenant, _Price()) + price
        if kept := self._kept_only():
            found["reserve"] = found.get("reserve", _Price()) + _Price(kept)
        return tuple(TenantPrice(t, p.paid, p.stranded) for t, p in sorted(found.items()))

    def _kept_only(self) -> int:
        """The price of GPUs that hold nothing but room kept free."""
        return sum(
            self.problem.fleet.price_micros(gpu.node)
            for gpu in self.problem.fleet.gpus()
            if gpu.id in self.kept and gpu.id not in self.on_gpu
        )

    def deployment(
        self,
        deployment: Deployment,
        prices: Mapping[str, _Price],
        dropped: tuple[Dropped, ...] | None,
        predict: Predict | None,
    ) -> DeploymentPlan:
        """That deployment's part of the plan; its reasons where it is told what was dropped."""
        replicas = self.replicas[deployment.name]
        asked = deployment.asked_mrps
        capacity = sum(self.matcher.capacity_mrps(r) for r in replicas)
        told = dropped is not None
        return DeploymentPlan(
            name=deployment.name,
            tenant=deployment.tenant,
            replicas=len(replicas),
            configs=self._configs(replicas),
            demand_mrps=asked,
            capacity_mrps=None if asked is None else capacity,
            predicted=self._predicted(deployment, replicas, capacity, predict),
            price_micros=prices[deployment.name].paid,
            reasons=reasons(self.problem, deployment, replicas, dropped or (), self.matcher)
            if told
            else (),
            slo=deployment.slo,
        )

    def _configs(self, replicas: list[Replica]) -> tuple[ConfigUse, ...]:
        def key(replica: Replica) -> tuple[Any, ...]:
            c = replica.config
            return (
                self.matcher.product(replica) or "",
                replica.shape.key,
                [str(getattr(c, name)) for name in ReplicaConfig.__dataclass_fields__],
            )

        found = []
        for (product, shape_key, _), group in groupby(sorted(replicas, key=key), key):
            members = list(group)
            found.append(
                ConfigUse(
                    gpu=product,
                    sharing=shape_key[0],
                    profile=members[0].shape.profile,
                    gpus_per_replica=len(members[0].gpus),
                    config=members[0].config,
                    count=len(members),
                    capacity_mrps=sum(self.matcher.capacity_mrps(r) for r in members),
                )
            )
        return tuple(found)

    def _predicted(
        self,
        deployment: Deployment,
        replicas: list[Replica],
        capacity: int,
        predict: Predict | None,
    ) -> Prediction | None:
        """The worst of its replicas when each carries its part of the demand."""
        used = [c for r in replicas if (c := self.matcher.candidate(r)) is not None]
        ways = {c.key: c for c in used}
        found = []
        for way in sorted(ways.values(), key=lambda c: str(c.key)):
            answer = None
            if predict is not None and deployment.asked_mrps and capacity:
                mine = way.capacity_mrps or 0
                rate = min(mine, -(-deployment.asked_mrps * mine // capacity))
                answer = predict(deployment, way, rate)
            found.append(answer or way.predicted)
        known = [p for p in found if p is not None]
        return _worst(known) if known else None


def _worst(predictions: list[Prediction]) -> Prediction:
    """Field by field the worst: the slowest time, the widest band, the least throughput."""

    def largest(name: str) -> float | None:
        values = [v for p in predictions if (v := getattr(p, name)) is not None]
        return max(values) if values else None

    bands: dict[str, float] = {}
    for prediction in predictions:
        for name, percent in prediction.error_band_percent:
            bands[name] = max(percent, bands.get(name, 0.0))
    rates = [p.output_tokens_per_second for p in predictions]
    return Prediction(
        ttft_ms=largest("ttft_ms"),
        tpot_ms=largest("tpot_ms"),
        ttft_mean_ms=largest("ttft_mean_ms"),
        tpot_mean_ms=largest("tpot_mean_ms"),
        concurrency=largest("concurrency"),
        output_tokens_per_second=min((r for r in rates if r is not None), default=None),
        error_band_percent=tuple(sorted(bands.items())),
    )
