"""A rebalance over two nodes: a move by way of a temporary copy, a swap of a GPU's layout."""

from dataclasses import replace

from builders import a100, deployment, fleet, gpu, node, place, placed, problem
from launchplans import TPOT_MS, TTFT_MS, at
from optimizer.domain.config import Prediction
from optimizer.domain.outcome import Outcome, Termination
from optimizer.domain.placement import Replica
from optimizer.domain.plan import Move, Plan, PlanRun, Step
from optimizer.planning import compose

A100, H200 = a100(), gpu("h200", memory_gib=140)
TIMES = Prediction(TTFT_MS, TPOT_MS)

# chat/1 goes to where code/0 is, by way of n2/2; code/0 goes to the other node; chat/0 gets a
# larger instance, cut where chat/1 was; vision/0 goes, vision/1 comes.
BEFORE = (
    at("chat/0", "n1/0", mig="1g.10gb@6"),
    at("chat/1", "n1/0", mig="3g.40gb@0"),
    at("code/0", "n2/0"),
    at("vision/0", "n2/1"),
)
AFTER = (
    at("chat/0", "n1/0", mig="2g.20gb@0"),
    at("chat/1", "n1/1", mig="3g.40gb@4"),
    at("code/0", "n2/1"),
    at("vision/1", "n2/0"),
)
HALFWAY = "n1/1"  # chat/1 stops there first, in 3g.40gb@0


def plan_of(*replicas: Replica, name: str = "toy") -> Plan:
    """A plan that starts these replicas."""
    tenants = {"chat": "acme", "code": "globex", "vision": "initech"}
    asked = problem(
        fleet(node("n1", A100, 2), node("n2", H200, 3)),
        [replace(deployment(one), tenant=tenant) for one, tenant in sorted(tenants.items())],
    )
    plan = compose(
        asked,
        Outcome(Termination.OPTIMAL, place(*replicas)),
        inputs=(),
        options={},
        run=PlanRun(0.1, 1, "2026-01-05T02:00:00Z", "optimality"),
        dropped={},
        version="0.1.0",
    )
    plan = replace(plan, fleet=name, moves=(), steps=())
    return replace(plan, deployments=tuple(replace(d, predicted=TIMES) for d in plan.deployments))


class _Writer:
    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, action: str, gpus: tuple[str, ...], *after: str, **said: object) -> str:
        name = f"s{len(self.steps) + 1:04d}"
        said.setdefault("replica", None)
        self.steps.append(
            Step(name, action, gpus, after=after, start_s=0, seconds=1, because="test", **said)  # type: ignore[arg-type]
        )
        return name

    def start(self, one: Replica, *after: str) -> str:
        said = {"replica": one.id, "placed": one.mig}
        up = self.step("start", one.gpus, *after, **said)
        return self.step("shift_traffic", one.gpus, up, **said)

    def end(self, one: Replica, *after: str) -> str:
        said = {"replica": one.id, "placed": one.mig}
        drained = self.step("drain", one.gpus, *after, **said)
        return self.step("stop", one.gpus, drained, **said)


def rebalance_plan(name: str = "toy") -> Plan:
    """From ``BEFORE`` to ``AFTER`` in 20 steps."""
    before = {r.id: r for r in BEFORE}
    after = {r.id: r for r in AFTER}
    halfway = replace(before["chat/1"], gpus=(HALFWAY,), mig=placed("3g.40gb@0"))
    write = _Writer()
    # vision/0 stops before code/0 takes its GPU, whose GPU then goes to vision/1.
    cut_half = write.step("create_instance", (HALFWAY,), placed=halfway.mig)
    vision_gone = write.end(before["vision/0"])
    half = write.start(halfway, cut_half)
    chat_gone = write.end(before["chat/1"], half)
    code = write.start(after["code/0"], vision_gone)
    code_gone = write.end(before["code/0"], code)
    free = write.step("destroy_instance", ("n1/0",), chat_gone, placed=before["chat/1"].mig)
    cut = write.step("create_instance", ("n1/0",), free, placed=after["chat/0"].mig)
    chat0 = write.start(after["chat/0"], cut)
    write.end(before["chat/0"], chat0)
    cut_end = write.step("create_instance", (HALFWAY,), cut_half, placed=after["chat/1"].mig)
    chat1 = write.start(after["chat/1"], half, cut_end)
    write.end(halfway, chat1)
    write.start(after["vision/1"], code_gone)
    moves = [
        Move(name, "move", before.get(name), after.get(name), 100, "test")
        for name in sorted({*before, *after})
    ]
    return replace(plan_of(*AFTER, name=name), moves=tuple(moves), steps=tuple(write.steps))
