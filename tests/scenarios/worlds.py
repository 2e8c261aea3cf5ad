"""A small priced fleet with measured workloads, and its baseline, for tests of scenarios."""

from builders import a100, deployment, fleet, gpu, node
from optimizer.domain.outcome import Limits
from optimizer.domain.workload import MeasuredOption, Needs, Workloads
from optimizer.optimize import Inputs, optimize
from optimizer.scenarios.evaluate import Setting, setting

LIMITS = Limits(effort=5.0, time_limit_s=60.0)


def inputs(nodes: int = 2) -> Inputs:
    """A100 nodes with two GPUs each in racks of their own, and one cheap node without MIG."""
    big = [node(f"big-{i}", a100(), 2, price=2.0, rack=f"r{i}") for i in range(nodes)]
    small = node("small", gpu("small", memory_gib=24), 2, price=0.5, rack="r9")
    chat = deployment(
        "chat",
        tenant="acme",
        rps=12,
        measured=(
            MeasuredOption("a100", 5_000, mig_profile="2g.20gb"),
            MeasuredOption("small", 4_000, gpus=1),
        ),
    )
    batch = deployment("batch", tenant="globex", replicas=2, needs=Needs(mig_profile="3g.40gb"))
    return Inputs(fleet(*big, small), Workloads("toy", (chat, batch)), {})


def baseline(asked: Inputs | None = None, *, fresh: bool = False) -> Setting:
    """The setting of the small fleet, planned."""
    asked = asked or inputs()
    return setting(asked, optimize(asked, LIMITS), LIMITS, fresh=fresh)
