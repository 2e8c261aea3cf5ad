"""What a plan says that replicas take, and how fast it says they are, held against the recount."""

from collections.abc import Iterator

from optimizer.domain.config import Prediction
from optimizer.domain.gpu import Use
from optimizer.domain.plan import Plan
from optimizer.verify.facts import Facts, Running, Violation

TIMES = ("ttft_ms", "tpot_ms", "ttft_mean_ms", "tpot_mean_ms")
ROUNDING_MS = 0.01  # plans hold thousandths


def uses(facts: Facts, plan: Plan) -> Iterator[Violation]:
    """Every replica and every GPU is said to take what its candidates take."""
    for one in facts.running:
        stated = plan.uses.get(one.replica.id)
        if stated is not None and stated != _takes(one):
            said = f"stated {_words(stated)}, counted {_words(_takes(one))}"
            yield Violation("uses", one.replica.id, said)
    for entry in plan.gpus:
        counted = sum((_takes(one) for one in facts.on_gpu.get(entry.id, ())), Use())
        if entry.use != counted:
            said = f"stated {_words(entry.use)}, counted {_words(counted)}"
            yield Violation("uses", entry.id, said)


def _takes(one: Running) -> Use:
    if one.replica.share is not None:
        return one.replica.share
    return one.candidate.use if one.candidate is not None else Use()


def _words(use: Use) -> str:
    return f"{use.memory_mib} MiB, {use.bandwidth_mbs} MB/s, {use.compute_ppm} ppm of the SMs"


def predictions(facts: Facts, plan: Plan) -> Iterator[Violation]:
    """No deployment is said to be faster than the slowest of its replicas."""
    stated = {entry.name: entry.predicted or Prediction() for entry in plan.deployments}
    for deployment in facts.problem.deployments:
        found = [one.candidate for one in facts.replicas(deployment) if one.candidate is not None]
        known = [candidate.predicted for candidate in found if candidate.predicted is not None]
        for name in TIMES if deployment.name in stated else ():
            slowest = max((t for p in known if (t := getattr(p, name)) is not None), default=None)
            says = getattr(stated[deployment.name], name)
            if says is not None and slowest is not None and says < slowest - ROUNDING_MS:
                said = f"{name}: stated {says}, its slowest replica has {slowest:.3f}"
                yield Violation("predictions", deployment.name, said)
