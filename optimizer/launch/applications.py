"""Each deployment as a Ray Serve application of a stable name, for those who route through Serve.

An application passes every request to the run's router, which alone knows who serves at the moment:
so moves need no word to Serve, and nothing is answered from an old table.
"""

from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from optimizer.launch.router import UNREACHABLE, Upstream, forward
from optimizer.launch.run import Run
from optimizer.launch.simulated.http import Request, Response, as_error
from optimizer.launch.traffic import TRAFFIC, Asked
from optimizer.launch.values import LaunchRefused

CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")  # name and namespace, of Ray's
PORT = 8000  # Serve's own default


def check() -> None:
    """Raises LaunchRefused where Ray Serve is not installed."""
    try:
        import_module("ray.serve")
    except ImportError as error:
        raise LaunchRefused(
            f"Ray Serve is not installed here ({error}); pip install 'ray[serve]'"
        ) from error


class Ingress:
    """The way in of one deployment."""

    def __init__(self, fleet: str, deployment: str) -> None:
        self._fleet, self._deployment = fleet, deployment
        self._router: Upstream | None = None

    async def __call__(self, request: Any) -> Any:
        """A request of Starlette's, answered as the router does."""
        body = await request.body()
        path = request.url.path.removeprefix(f"/{self._deployment}")
        asked = Request(request.method, path, dict(request.headers), body)
        for known in (self._router, None):
            try:
                self._router = known or await self._find()
                return _answer(await forward(self._router, asked))
            except UNREACHABLE:
                continue  # it has another port since it started anew
        return _answer(as_error(503, "the router cannot be reached", (("Retry-After", "1"),)))

    async def _find(self) -> Upstream:
        import ray

        try:
            handle = ray.get_actor(self._fleet, namespace=TRAFFIC)
            url = urlsplit(await handle.address.remote())
        except (ValueError, ray.exceptions.RayError) as error:
            raise OSError("there is no router") from error
        return Upstream("router", str(url.hostname), int(url.port or 80), f"/{self._deployment}")


def _answer(response: Response) -> Any:
    starlette: Any = import_module("starlette.responses")
    status, headers, kind = response.status, dict(response.headers), response.content_type
    if response.events is not None:
        return starlette.StreamingResponse(_stream(response), status, headers, kind)
    if response.finish is not None:
        response.finish()
    return starlette.Response(response.body, status, headers, kind)


async def _stream(response: Response) -> AsyncIterator[bytes]:
    assert response.events is not None
    try:
        async for event in response.events:
            yield event
    finally:
        if response.finish is not None:
            response.finish()


def publish(ray: Any, run: Run, deployments: Iterable[str], how: Asked) -> tuple[Run, str]:
    """An application for each deployment; the run that remembers them, and where Serve listens.

    Serve is started, at the router's address, where it does not run yet.
    """
    serve: Any = import_module("ray.serve")
    ours = run.serve_ours
    if not _runs(ray):
        ours = True
        serve.start(proxy_location="HeadOnly", http_options={"host": how.host, "port": PORT})
    names = set(run.applications)
    for deployment in sorted(set(deployments)):
        name = f"{run.fleet}.{deployment}"
        kind = serve.deployment(Ingress).options(
            name=deployment, num_replicas=1, ray_actor_options={"num_cpus": 0}
        )
        serve.run(kind.bind(run.fleet, deployment), name=name, route_prefix=f"/{deployment}")
        names.add(name)
    told = replace(run, applications=tuple(sorted(names)), serve_ours=ours)
    return told, f"http://{how.host}:{PORT}"


def end(ray: Any, run: Run) -> None:
    """Remove the run's applications, and Serve itself where it was started for them."""
    if not run.applications or not _runs(ray):
        return
    serve: Any = import_module("ray.serve")
    for name in run.applications:
        serve.delete(name)
    if run.serve_ours and not serve.status().applications:
        serve.shutdown()


def _runs(ray: Any) -> bool:
    name, namespace = CONTROLLER
    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return False
    return True
