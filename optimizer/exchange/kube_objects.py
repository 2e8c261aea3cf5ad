"""Kubernetes objects as ``kubectl get -o json|yaml`` prints them: the facts that placing needs."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimizer.exchange.imported import CannotRead, File, Input

Object = Mapping[str, Any]
GPU = "nvidia.com/gpu"
MIG = "nvidia.com/mig-"
SHARED = ".shared"
# Resources and annotations by which other schedulers hand out parts of GPUs, or other makers GPUs.
_OTHERS = re.compile(
    r"^(?:nvidia\.com|amd\.com|gpu\.intel\.com|habana\.ai|aliyun\.com|volcano\.sh|tencent\.com)/"
)
_SHARES = ("gpu-fraction", "gpu-memory", "gpu-fraction-num-devices")  # KAI and its kin
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_UNITS |= {"n": 1e-9, "u": 1e-6, "m": 1e-3}
_UNITS |= {
    f"{letter}i": 2.0**power for power, letter in zip(range(10, 70, 10), "KMGTPE", strict=True)
}
CLAIM = "a resource claim (DRA)"
EXTENDED = "extendedResourceClaimStatus"  # of a pod whose nvidia.com/gpu a DRA driver serves
READ = {"Node", "Pod", "ResourceSlice", "ResourceClaim"}
_NAMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,252}")
_YAML = re.compile(r"^(?:- )?(?:apiVersion|items):", re.M)
_SPACE = re.compile(r"\s*")
_QUANTITY = re.compile(r"(\d{1,30}(?:\.\d{0,30})?)([numkMGTPE]|[KMGTPE]i|[eE][+\-]?\d{1,2})?$")
_PROFILE = re.compile(r"(\d+g\.\d+gb)(?:\.?)(.*)$")


def objects(given: Input) -> tuple[list[Object], list[File]]:
    """Every object of the files, lists opened; and the files that hold none of Kubernetes'."""
    found: list[Object] = []
    others: list[File] = []
    reasons: list[str] = []
    for file in given.files:
        if not looks_like_objects(file.text):
            others.append(file)
            continue
        try:
            for value in _values(file, given):
                found += _opened(file, value)
        except CannotRead as refusal:
            reasons += refusal.reasons
    if reasons:
        raise CannotRead(*reasons)
    return found, others


def looks_like_objects(text: str) -> bool:
    """Whether a text is JSON, or YAML that says ``apiVersion`` or ``items``."""
    return _json_start(text) is not None or bool(_YAML.search(text))


def _values(file: File, given: Input) -> Sequence[Any]:
    """The values of YAML, or of one JSON text or several after each other."""
    start = _json_start(file.text)
    if start is None:
        return given.parse(file)
    values, text, decoder = [], file.text, json.JSONDecoder()
    while start < len(text):
        try:
            value, start = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise CannotRead(file.at(error.lineno, f"broken JSON: {error.msg}")) from None
        except RecursionError:
            raise CannotRead(f"{file.name}: is nested deeper than any Kubernetes object") from None
        values.append(value)
        start = _SPACE.match(text, start).end()  # type: ignore[union-attr]
    return values


def _json_start(text: str) -> int | None:
    """Where JSON begins: at once, or at a line of its own after a prompt or a warning."""
    found = re.match(r"[\ufeff\s]*(?=[{\[])", text)
    if found:
        return found.end()
    later = re.search(r"^\{(?=\s*(?:$|\"))", text, re.M)
    before = text[: later.start()] if later else ""
    return later.start() if later and not _YAML.search(before) else None


def _opened(file: File, value: Any) -> Iterator[Object]:
    values = value if isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, Mapping):
            raise CannotRead(f"{file.name}: holds something that is no Kubernetes object")
        kind, items = str(one.get("kind", "")), one.get("items")
        if isinstance(items, list):
            inside = kind.removesuffix("List")
            for item in items:
                if not isinstance(item, Mapping):
                    raise CannotRead(f"{file.name}: an item that is no Kubernetes object")
                yield {"kind": inside, **item}
        elif kind:
            yield one
        else:
            raise CannotRead(f"{file.name}: an object without kind")


def once(found: Sequence[Object], told: Callable[[str], None]) -> list[Object]:
    """Each object once: captures overlap. Raises CannotRead where they contradict each other."""
    seen: dict[tuple[str, str, str], Object] = {}
    for one in found:
        kind, space = str(one.get("kind")), str(at(one, "metadata", "namespace") or "default")
        name = text(one, "metadata", "name")
        if name is None or not _NAMED.fullmatch(name):
            if kind in READ:
                told(f"a {kind} without a name that Kubernetes would take: {str(name)[:40]!r}")
            continue
        before = seen.setdefault((kind, space, name), one)
        if kind == "Node" and before is not one and _facts(before) != _facts(one):
            raise CannotRead(
                f"two nodes are called {name} and differ; import one cluster at a time"
            )
    return list(seen.values())


def _facts(node: Object) -> tuple[Any, ...]:
    """What a node is, without what changes by the minute."""
    return mapping(node, "metadata", "labels"), mapping(node, "status", "capacity")


def at(value: Any, *path: str) -> Any:
    """What stands at a path of field names; None where the path breaks off."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def text(value: Any, *path: str) -> str | None:
    """The text at a path; numbers as text."""
    found = at(value, *path)
    return None if found is None or isinstance(found, Mapping | list) else str(found)


def mapping(value: Any, *path: str) -> Mapping[str, Any]:
    """The mapping at a path, or an empty one."""
    found = at(value, *path)
    return found if isinstance(found, Mapping) else {}


def entries(value: Any, *path: str) -> list[Mapping[str, Any]]:
    """The mappings of the list at a path."""
    found = at(value, *path)
    return [f for f in found if isinstance(f, Mapping)] if isinstance(found, list) else []


def count(value: Any) -> int:
    """A whole number of devices; 0 where there is none."""
    plain = str(value if value is not None else "").strip()
    return int(plain) if plain.isascii() and plain.isdigit() and len(plain) < 7 else 0


def quantity(value: Any) -> float | None:
    """``191450m``, ``1056270540Ki`` as a number; None where it is none."""
    found = _QUANTITY.match(str(value if value is not None else ""))
    if not found:
        return None
    unit = found[2] or ""
    return float(found[1]) * (_UNITS[unit] if unit in _UNITS else float(f"1{unit}"))


def profile_of(resource: str) -> str:
    """``3g.40gb`` of ``nvidia.com/mig-3g.40gb``; Kubernetes writes ``.me`` for ``+me``."""
    found = _PROFILE.match(resource.removeprefix(MIG))
    if not found:
        return resource.removeprefix(MIG)
    base, rest = found[1], found[2]
    return base if not rest else f"{base}{rest}" if rest[0] == "-" else f"{base}+{rest}"


@dataclass(frozen=True, slots=True)
class Asked:
    """What one pod holds: whole GPUs or slices by resource, and host CPU and memory."""

    devices: tuple[tuple[str, int], ...]
    cores: float
    gib: float
    others: tuple[str, ...] = ()  # what else it takes of accelerators, in others' words

    @property
    def accelerated(self) -> bool:
        """Whether it holds any device, or a part of one."""
        return bool(self.devices or self.others)


def asked(pod: Object) -> Asked:
    """The sum over its containers; an init container counts where it asks for more."""
    totals: dict[str, float] = {}
    for container in entries(pod, "spec", "containers"):
        for name, amount in _amounts(container).items():
            totals[name] = totals.get(name, 0.0) + amount
    for container in entries(pod, "spec", "initContainers"):
        for name, amount in _amounts(container).items():
            totals[name] = max(totals.get(name, 0.0), amount)
    devices = sorted(
        (name, int(amount)) for name, amount in totals.items() if is_device(name) and amount >= 1
    )
    others = sorted(name for name in totals if strange_device(name))
    annotations = mapping(pod, "metadata", "annotations")
    others += [f"annotation {name}" for name in _SHARES if name in annotations]
    if entries(pod, "spec", "resourceClaims") or at(pod, "status", EXTENDED):
        others.append(CLAIM)
    gib = totals.get("memory", 0.0) / 2**30
    return Asked(tuple(devices), totals.get("cpu", 0.0), gib, tuple(others))


def _amounts(container: Object) -> dict[str, float]:
    both = {
        **mapping(container, "resources", "limits"),
        **mapping(container, "resources", "requests"),
    }
    return {name: amount for name, v in both.items() if (amount := quantity(v)) is not None}


def is_device(resource: str) -> bool:
    """Whether a resource is a GPU or a part of one."""
    return resource.removesuffix(SHARED) == GPU or resource.startswith(MIG)


def strange_device(resource: str) -> bool:
    """Whether a resource is of an accelerator, and none that is read here."""
    return bool(_OTHERS.match(resource)) and not is_device(resource)


def matches(labels: Mapping[str, Any], pod: Object) -> bool:
    """Whether a node with these labels is one that the pod asks for by selector or affinity."""
    wanted = mapping(pod, "spec", "nodeSelector")
    if any(str(labels.get(k)) != str(v) for k, v in wanted.items()):
        return False
    terms = entries(
        mapping(
            pod,
            "spec",
            "affinity",
            "nodeAffinity",
            "requiredDuringSchedulingIgnoredDuringExecution",
        ),
        "nodeSelectorTerms",
    )
    return not terms or any(
        all(_holds(labels, e) for e in entries(term, "matchExpressions")) for term in terms
    )


def _holds(labels: Mapping[str, Any], expression: Object) -> bool:
    have = labels.get(str(expression.get("key")))
    values = [str(v) for v in expression.get("values") or ()]
    match expression.get("operator"):
        case "In":
            return have is not None and str(have) in values
        case "NotIn":
            return have is None or str(have) not in values
        case "Exists":
            return have is not None
        case "DoesNotExist":
            return have is None
    return True  # Gt and Lt compare numbers of labels that GPUs do not carry


def owner(pod: Object) -> str:
    """The name of what made the pod: a Deployment, StatefulSet, Job and so on."""
    labels = mapping(pod, "metadata", "labels")
    for reference in entries(pod, "metadata", "ownerReferences"):
        name = str(reference.get("name", ""))
        hashed = labels.get("pod-template-hash")
        if reference.get("kind") == "ReplicaSet" and hashed:
            return name.removesuffix(f"-{hashed}")
        if reference.get("kind") == "Job":
            return re.sub(r"-\d{6,}$", "", name)
        return name
    return str(at(pod, "metadata", "name") or "pod")
