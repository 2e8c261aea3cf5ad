"""Kubernetes: what an API server lists, asked through the Python client as kubectl would."""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

from optimizer.exchange.imported import CannotRead, File, Import, Input, NotHere
from optimizer.exchange.kube_import import import_kubernetes

EXTRA = "fleetslice[kubernetes]"
NEEDED = {"nodes": "/api/v1/nodes", "pods": "/api/v1/pods"}
# Asked too, where the cluster has them: what DRA drivers offer, and what pods hold of it.
DRA = {
    "resourceslices": "/apis/resource.k8s.io/v1/resourceslices",
    "resourceclaims": "/apis/resource.k8s.io/v1/resourceclaims",
}
PAGE = 500
PATIENCE_S = (10, 60)  # to connect, to answer
_GONE = 410  # the list went on changing for longer than a page's token lives
_RESTARTS = 3


class _Refused(Exception):
    """The server answered with this status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def import_cluster(given: Input) -> Import:
    """What the cluster of the kubeconfig, or around this pod, runs. Raises NotHere, CannotRead."""
    try:
        client: Any = import_module("kubernetes.client")
    except ImportError:
        raise NotHere(f"the Python client is not installed (pip install '{EXTRA}')") from None
    configuration = _configuration(client)
    notes: list[str] = []
    items: list[dict[str, Any]] = []
    with client.ApiClient(configuration) as api:
        for what, path in (NEEDED | DRA).items():
            try:
                items += _listed(api, what, path, configuration.host)
            except _Refused as refusal:
                if what in NEEDED:
                    raise CannotRead(_why(what, refusal, configuration.host)) from None
                if refusal.status != 404:  # clusters before 1.34 have no such resource
                    notes.append(f"{_why(what, refusal, configuration.host)}; read without them")
    text = json.dumps({"kind": "List", "items": items})
    found = import_kubernetes(replace(given, files=(File("the cluster", text),)))
    first, *rest = found.documents
    return replace(found, documents=(replace(first, notes=(*notes, *first.notes)), *rest))


def _configuration(client: Any) -> Any:
    """As kubectl finds it: KUBECONFIG or ~/.kube/config, else the service account of this pod."""
    config: Any = import_module("kubernetes.config")
    found = client.Configuration()
    try:
        config.load_kube_config(client_configuration=found, persist_config=False)
    except config.ConfigException as outside:
        try:
            config.load_incluster_config(client_configuration=found)
        except config.ConfigException:
            raise NotHere(f"no cluster to ask: {outside}") from None
    found.retries = False
    return found


def _listed(api: Any, what: str, path: str, host: str) -> Iterator[dict[str, Any]]:
    """Every object of the list, page by page. Raises _Refused and CannotRead."""
    kind = {"nodes": "Node", "pods": "Pod"}.get(what, "")
    for restart in range(_RESTARTS):
        try:
            found = list(_pages(api, path, host))
            break
        except _Refused as refusal:
            if refusal.status != _GONE or restart == _RESTARTS - 1:
                raise
    for page in found:
        of = kind or str(page.get("kind", "")).removesuffix("List")
        yield from ({"kind": of, **item} for item in page.get("items") or ())


def _pages(api: Any, path: str, host: str) -> Iterator[dict[str, Any]]:
    token = None
    while True:
        page = _asked(api, path, [("limit", PAGE), *([("continue", token)] if token else [])], host)
        yield page
        token = (page.get("metadata") or {}).get("continue")
        if not token:
            return


def _asked(api: Any, path: str, query: list[tuple[str, Any]], host: str) -> dict[str, Any]:
    exceptions: Any = import_module("kubernetes.client.exceptions")
    urllib3: Any = import_module("urllib3.exceptions")
    headers = {"Accept": "application/json"}
    request = api.param_serialize(
        "GET", path, query_params=query, header_params=headers, auth_settings=["BearerToken"]
    )
    try:
        answer = api.call_api(*request, _request_timeout=PATIENCE_S)
        body = answer.read()
    except (exceptions.ApiException, urllib3.HTTPError) as error:
        reason = getattr(error, "reason", None) or error
        raise CannotRead(f"{host} cannot be reached: {' '.join(str(reason).split())}") from None
    try:
        page = json.loads(body)
    except ValueError:
        raise CannotRead(f"{host}{path}: the answer is no JSON (status {answer.status})") from None
    if not isinstance(page, dict):
        raise CannotRead(f"{host}{path}: the answer is no list")
    if answer.status != 200:
        raise _Refused(answer.status, str(page.get("message") or answer.status))
    return page


def _why(what: str, refusal: _Refused, host: str) -> str:
    match refusal.status:
        case 401:
            return f"{host} does not know who asks (401); log in again, as kubectl would want it"
        case 403:
            return (
                f"not allowed to list {what} (403: {refusal}); ask for a ClusterRole with the verb "
                f"list on {what}, or import a file of kubectl get"
            )
    return f"{host} does not list {what} ({refusal.status}: {refusal})"
