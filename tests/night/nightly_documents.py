"""A fleet of three machines, deployments with demand that changes by day, and a policy."""

from pathlib import Path

FLEET = """\
kind: Fleet
version: 1
name: nights
nodes:
  - {name: n1, gpu: a100-80gb-sxm, gpus: 2, price_per_gpu_hour: 2.00}
  - {name: n2, gpu: a100-80gb-sxm, gpus: 2, price_per_gpu_hour: 1.50}
  - {name: n3, gpu: a100-80gb-sxm, gpus: 2, price_per_gpu_hour: 2.50}
"""
WORKLOADS = """\
kind: Workloads
version: 1
name: nights
deployments:
  - name: chat
    tenant: acme
    measured:
      - {{gpu: a100-80gb-sxm, mig_profile: 1g.10gb, requests_per_second: 100, latency_ms: 9}}
      - {{gpu: a100-80gb-sxm, mig_profile: 3g.40gb, requests_per_second: 390, latency_ms: 8}}
    demand: {{requests_per_second: {chat}}}
    replicas: {{min: 2}}
    spread: {{node: 3}}
  - name: code
    tenant: globex
    measured:
      - {{gpu: a100-80gb-sxm, mig_profile: 2g.20gb, requests_per_second: 50, latency_ms: 30}}
    demand: {{requests_per_second: {code}}}
    replicas: {{min: 1}}
  - name: batch
    tenant: initech
    needs: {{gpus: 1}}
    replicas: {{min: {batch}}}
"""
POLICY = "kind: Policy\nversion: 1\nname: test\n"


def put(folder: Path, *, chat: int = 400, code: int = 90, batch: int = 1, policy: str = "") -> None:
    """The three documents; ``policy``: further lines of the last."""
    (folder / "fleet.yaml").write_text(FLEET)
    (folder / "workloads.yaml").write_text(WORKLOADS.format(chat=chat, code=code, batch=batch))
    (folder / "policy.yaml").write_text(POLICY + policy)


def paths(folder: Path) -> list[Path]:
    """Where they are."""
    return [folder / f"{name}.yaml" for name in ("fleet", "workloads", "policy")]
