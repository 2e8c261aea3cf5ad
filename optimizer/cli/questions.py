"""Commands that ask a question of many scenarios and give a short answer."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import options
from optimizer.cli.codes import Code
from optimizer.cli.groups import Limiting, Showing, Working
from optimizer.cli.inputs import tell_notes
from optimizer.cli.terminal import Stop, finish, guarded, say
from optimizer.cli.whatif import Add, Baseline, ScaleDemand, baseline_of, progress_bar

if TYPE_CHECKING:
    from optimizer.documents import Documents
    from optimizer.domain.offer import Offer
    from optimizer.domain.scenario import Scenario
    from optimizer.optimize import Planned
    from optimizer.scenarios.evaluate import Setting
    from optimizer.scenarios.questions import Ask


HERE = Working(workers=0)  # in this process, without Ray


@dataclass(frozen=True, slots=True)
class _Ground:
    """What a question is asked about, and whom."""

    found: "Documents"
    planned: "Planned"
    setting: "Setting"
    ask: "Ask"

    @property
    def unit(self) -> str:
        return self.setting.inputs.fleet.unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """The flags that all questions share."""

    baseline: Baseline = None
    shown: Showing
    limiting: Limiting

    def read(
        self, documents: Sequence[Path], scenario: dict[str, Any] | None = None
    ) -> "Documents":
        """The documents, and what flags ask as one scenario more. Raises DocumentFaults, Stop."""
        from optimizer.scenarios.quick import load_with

        self.shown.check()
        found = load_with(documents, scenario)
        tell_notes(found)
        return found

    @contextmanager
    def ground(
        self,
        found: "Documents",
        working: Working = HERE,
        *,
        any_price: bool = False,
        serving: bool = False,
    ) -> Iterator[_Ground]:
        """The baseline planned, and Ray started. Raises Stop.

        ``any_price``: of scenarios it is only asked who can be served; ``serving``: only whether
        everybody can, and the baseline is just where their plans start.
        """
        from optimizer.scenarios import buy
        from optimizer.scenarios.evaluate import asking, at_any_price, setting

        limits = self.limiting.limits()
        begin = buy.quickly(limits) if serving else limits
        inputs, planned = baseline_of(found, self.baseline, begin)
        if planned.plan.status in ("infeasible", "nothing_found"):
            raise Stop(Code.UNMET, "there is no baseline: fleetslice plan says why")
        ground = setting(inputs, planned, limits)
        ground = at_any_price(ground) if any_price else ground
        ground = buy.serving(ground) if serving else ground
        with (
            progress_bar() as report,
            asking(ground, workers=working.workers, address=working.address, report=report) as ask,
        ):
            yield _Ground(found, planned, ground, ask)

    def show(self, data: Mapping[str, Any]) -> None:
        """The answer, in the form asked for; rows are for the table alone."""
        from optimizer.report.questions import render_question

        plain = {k: v for k, v in data.items() if k != "rows"}
        self.shown.show(
            plain, lambda console: render_question(data, console, ascii=self.shown.ascii)
        )


def _answered(answer: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The answer. Raises Stop where a scenario that it turns on has none."""
    from optimizer.scenarios.questions import Unanswered
    from optimizer.scenarios.scenario import ScenarioFault

    try:
        return answer()
    except ScenarioFault as fault:
        raise Stop(Code.USAGE, str(fault)) from None
    except Unanswered as reason:
        raise Stop(Code.ERROR, str(reason)) from None


@guarded
def quote(
    documents: options.DocumentFiles,
    *,
    add: Add = None,
    asked: Asking,
) -> None:
    """Price a new customer on this fleet: what the whole plan costs more.

    Exits with 3 when it does not fit.

    \b
    Examples:
      fleetslice quote clusters/lab-64.yaml workloads/prod.yaml --add customer.yaml
    """
    from optimizer.domain.scenario import AddDeployments
    from optimizer.scenarios.evaluate import Planner
    from optimizer.scenarios.questions import quote as quoted
    from optimizer.scenarios.quick import quick
    from optimizer.scenarios.told import quote_data

    if not add:
        raise Stop(Code.USAGE, "who is to be quoted? name a Workloads document with --add FILE")
    with asked.ground(asked.read(documents, quick(add=add))) as ground:
        new = ground.found.scenarios[-1].changes
        deployments = [d for c in new if isinstance(c, AddDeployments) for d in c.deployments]
        names = [d.name for d in deployments]
        planner = Planner(replace(ground.setting, fixes=True))
        data = _answered(lambda: quote_data(quoted(planner, deployments), ground.unit, names))
    asked.show(data)
    finish(Code.DONE if data["fits"] else Code.UNMET)


@guarded
def admit(
    documents: options.DocumentFiles,
    *,
    add: Add = None,
    asked: Asking,
) -> None:
    """Place new deployments beside a plan, moving nothing, at the least price.

    Exits with 3 when one does not fit, and says which rule binds or how much does. With a plan
    as --baseline the answer takes milliseconds once all is read.

    \b
    Examples:
      fleetslice admit clusters/lab-64.yaml workloads/prod.yaml --add customer.yaml
    """
    from optimizer.domain.scenario import AddDeployments
    from optimizer.scenarios.admission import admission
    from optimizer.scenarios.quick import quick

    if not add:
        raise Stop(Code.USAGE, "who is to be admitted? name a Workloads document with --add FILE")
    with asked.ground(asked.read(documents, quick(add=add))) as ground:
        new = ground.found.scenarios[-1].changes
        deployments = [d for c in new if isinstance(c, AddDeployments) for d in c.deployments]
        data = admission(ground.setting.inputs, ground.planned, deployments)
    asked.show(data)
    finish(Code.DONE if data["fits"] else Code.UNMET)


@guarded
def headroom(
    documents: options.DocumentFiles,
    *,
    deployment: Annotated[
        str | None, typer.Option("--deployment", metavar="NAME", help="Only this one grows.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option("--tenant", metavar="NAME", help="Only this tenant grows.")
    ] = None,
    most: Annotated[
        float, typer.Option("--most", min=1.0, help="The largest growth asked about.")
    ] = 8.0,
    within: Annotated[
        float,
        typer.Option("--within", min=0.001, help="Width of the bracket that ends the search."),
    ] = 0.02,
    asked: Asking,
    working: Working,
) -> None:
    """Find how far demand can grow before somebody goes unserved.

    \b
    Examples:
      fleetslice headroom clusters/lab-64.yaml workloads/prod.yaml
      fleetslice headroom clusters/lab-64.yaml workloads/prod.yaml --tenant acme --within 0.1
    """
    from optimizer.domain.units import PPM
    from optimizer.scenarios.questions import headroom as found
    from optimizer.scenarios.told import headroom_data

    if deployment is not None and tenant is not None:
        raise Stop(Code.USAGE, "--deployment and --tenant go not together; keep one of the two")
    kind = "deployment" if deployment else "tenant" if tenant else "all"
    name = deployment or tenant
    width = round(within * PPM)
    read = asked.read(documents)
    _check_name(read, kind, name)
    with asked.ground(read, working, any_price=True) as ground:
        data = _answered(
            lambda: headroom_data(
                found(
                    ground.setting,
                    ground.ask,
                    kind,
                    name,
                    most_ppm=round(most * PPM),
                    within_ppm=width,
                ),
                kind,
                name,
            )
        )
    asked.show(data)


@guarded
def survive(
    documents: options.DocumentFiles,
    *,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="node|rack|zone",
            help="Only such losses; may be repeated.",
            show_default=False,
        ),
    ] = None,
    asked: Asking,
    working: Working,
) -> None:
    """Lose every node, rack and zone in turn, and say what goes unmet.

    First with the replicas that are left where they are: do they carry the demand? Then with all
    of it planned anew on what is left. Exits with 3 when a loss leaves somebody short at once.

    \b
    Examples:
      fleetslice survive clusters/lab-64.yaml workloads/prod.yaml --baseline lab-64.plan.json
      fleetslice survive clusters/lab-64.yaml workloads/prod.yaml --kind node
    """
    from optimizer.documents.faults import unknown
    from optimizer.scenarios.questions import KINDS
    from optimizer.scenarios.questions import survive as losses
    from optimizer.scenarios.told import survive_data

    for name in kind or ():
        if name not in KINDS:
            raise Stop(Code.USAGE, f"--kind: {unknown('kind', name, KINDS)}")
    kinds = [name for name in KINDS if not kind or name in kind]
    with asked.ground(asked.read(documents), working) as ground:
        problem, placement = ground.planned.problem, ground.planned.plan.placement
        promised = {d.name: d.survive for d in problem.deployments if d.survive}
        found = _answered(
            lambda: survive_data(
                losses(problem, placement, ground.ask, kinds), ground.unit, promised
            )
        )
    asked.show(found)
    if any(loss["planned_anew"]["failed"] for loss in found["losses"]):
        finish(Code.PARTLY)
    finish(Code.UNMET if any(loss["short_at_once"] for loss in found["losses"]) else Code.DONE)


@guarded
def retire(
    documents: options.DocumentFiles,
    *,
    asked: Asking,
    working: Working,
) -> None:
    """Find nodes that can be switched off with nobody served less.

    \b
    Examples:
      fleetslice retire clusters/lab-64.yaml workloads/prod.yaml
    """
    from optimizer.scenarios.questions import retire as retired
    from optimizer.scenarios.told import retire_data

    with asked.ground(asked.read(documents), working) as ground:
        placement = ground.planned.plan.placement
        data = _answered(
            lambda: retire_data(retired(ground.setting, placement, ground.ask), ground.unit)
        )
    asked.show(data)


@guarded
def sensitivity(
    documents: options.DocumentFiles,
    *,
    asked: Asking,
    working: Working,
) -> None:
    """Price every rule that a deployment states: its SLO, spread, pin, what it may use.

    Each is dropped alone, and the whole planned again. A "?" marks a price that is not proved.

    \b
    Examples:
      fleetslice sensitivity clusters/lab-64.yaml workloads/prod.yaml --gap 0.01
    """
    from optimizer.scenarios.questions import sensitivity as priced
    from optimizer.scenarios.told import sensitivity_data

    with asked.ground(asked.read(documents), working) as ground:
        data = _answered(lambda: sensitivity_data(priced(ground.setting, ground.ask), ground.unit))
    asked.show(data)


@guarded
def buy(
    documents: options.DocumentFiles,
    *,
    offer: Annotated[
        list[str] | None,
        typer.Option(
            "--offer",
            metavar="NxGPU=PRICE",
            help="Nodes of N GPUs at this price an hour each: 8xh200-141gb-sxm=27.20; beside those "
            "of a Prices document.",
            show_default=False,
        ),
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Nodes of each --offer at most.")] = 4,
    months: Annotated[
        int,
        typer.Option(
            "--months", min=0, help="For how long they are needed: commitments up to that apply."
        ),
    ] = 0,
    scenario: Annotated[
        str | None,
        typer.Option(
            "--scenario", metavar="NAME", help="Of a Scenarios document.", show_default=False
        ),
    ] = None,
    scale_demand: ScaleDemand = None,
    add: Add = None,
    asked: Asking,
    working: Working,
) -> None:
    """Find the cheapest new nodes with which everybody is served.

    Today's demand, or a scenario's, and nodes of a Prices document or of --offer. Exits with 3
    when all that is offered does not do.

    \b
    Examples:
      fleetslice buy clusters/lab-64.yaml workloads/prod.yaml clusters/offers.prices.yaml \\
          --scale-demand 1.5 --months 12
      fleetslice buy clusters/lab-64.yaml workloads/prod.yaml --scale-demand 1.5 \\
          --offer 8xh200-141gb-sxm=27.20 --offer 8xl40s=6.80
    """
    from optimizer.scenarios.buy import buy as bought
    from optimizer.scenarios.evaluate import Planner
    from optimizer.scenarios.quick import quick, scaling
    from optimizer.scenarios.told import buy_data

    flags = quick(scale=[scaling(text) for text in scale_demand or ()], add=add or ())
    found = asked.read(documents, flags)
    wanted = _wanted(found, scenario, with_flags=flags is not None)
    offers = _offers(found, offer or (), most, months)
    with asked.ground(found, working, serving=True) as ground:
        planner, at_once = Planner(ground.setting), max(1, working.workers)
        data = _answered(
            lambda: buy_data(
                bought(planner, ground.ask, offers, wanted, at_once=at_once, tell=say),
                offers,
                ground.setting.inputs.fleet.currency,  # offers have prices where no node has one
            )
        )
    asked.show(data)
    finish(Code.DONE if data["serves"] else Code.UNMET)


def _check_name(found: "Documents", kind: str, name: str | None) -> None:
    """A deployment or tenant that nobody has is a slip. Raises Stop."""
    from optimizer.documents.faults import unknown

    assert found.workloads is not None
    deployments = found.workloads.deployments
    known = sorted({d.tenant if kind == "tenant" else d.name for d in deployments})
    if name is not None and name not in known:
        raise Stop(Code.USAGE, f"--{kind}: {unknown(kind, name, known)}")


def _wanted(found: "Documents", name: str | None, *, with_flags: bool) -> "Scenario":
    """The scenario to serve: the one named, then what the flags say, together."""
    from optimizer.documents.faults import unknown
    from optimizer.domain.scenario import Scenario

    known = {one.name: one for one in found.scenarios}
    faulty = dict(found.bad_scenarios)
    if name in faulty:
        raise Stop(Code.USAGE, *map(str, faulty[name]))
    if name is not None and name not in known:
        raise Stop(Code.USAGE, f"--scenario: {unknown('scenario', name, known)}")
    parts = [known[name]] if name is not None else []
    parts += [found.scenarios[-1]] if with_flags else []
    return Scenario(
        ", ".join(p.name for p in parts) or "as it is", tuple(c for p in parts for c in p.changes)
    )


def _offers(found: "Documents", texts: Sequence[str], most: int, months: int) -> "list[Offer]":
    """Nodes that can be had, of the Prices document and then of flags. Raises Stop."""
    offers = [o.kept_for(months) for o in found.prices.offers] if found.prices else []
    offers += [_offer(found, text, most) for text in texts]
    if not offers:
        what = "what can be had? name a Prices document, or say --offer 8xh200-141gb-sxm=27.20"
        raise Stop(Code.USAGE, what)
    for name, count in Counter(o.name for o in offers).items():
        if count > 1:
            raise Stop(Code.USAGE, f"--offer: {name} is offered twice; keep one of the two")
    return offers


def _offer(found: "Documents", text: str, most: int) -> "Offer":
    """``8xh200-141gb-sxm=27.20``. Raises Stop."""
    from optimizer.documents.faults import unknown
    from optimizer.domain.fleet import Node, Sharing
    from optimizer.domain.offer import Offer
    from optimizer.domain.units import MICROS, scaled

    what, _, price = text.partition("=")
    count, _, product = what.partition("x")
    try:
        gpus, micros = int(count), scaled(float(price), MICROS)
    except (ValueError, ArithmeticError):
        gpus, micros = 0, 0
    if gpus < 1 or micros <= 0:
        raise Stop(Code.USAGE, f'--offer "{text}": must read NxGPU=PRICE, as 8xl40s=6.80')
    gpu = found.catalogue.gpu(product)
    if gpu is None:
        told = unknown("GPU product", product, found.catalogue.gpus.names())
        raise Stop(Code.USAGE, f"--offer: {told}")
    modes = (Sharing.MIG, Sharing.WHOLE) if gpu.mig else (Sharing.WHOLE, Sharing.SHARED)
    name = f"new-{gpus}x{gpu.name}"
    like = Node(name, gpu, gpus, sharing=modes, nvlink_domain=gpu.nvlink_domain)
    return Offer(like, micros, most)
