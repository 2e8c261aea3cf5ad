"""Answers to questions as plain data: sentences, the rows of a table, and the numbers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from optimizer.domain import words
from optimizer.domain.offer import Offer
from optimizer.domain.plan import Unmet
from optimizer.domain.units import PPM, money, rps
from optimizer.scenarios.answer import Answer, Json, entry, unmet_rows
from optimizer.scenarios.buy import Purchase
from optimizer.scenarios.compare import clash_told, missing
from optimizer.scenarios.questions import Headroom, Loss, Quote, Retired, RulePrice, Short

HOURS_A_MONTH = 730  # 8,760 hours of a year over twelve


def quote_data(quote: Quote, unit: str, names: Sequence[str]) -> Json:
    """``quote -o json``; prices are null where there is no plan at all."""
    planned = quote.answer.planned

    def price(micros: int, hours: int = 1) -> float | None:
        return money(micros * hours) if planned else None

    return {
        "question": "quote",
        "unit": unit,
        "says": _quote_says(quote, unit, ", ".join(names)),
        "fits": quote.fits,
        "price_per_hour": price(quote.marginal_micros),
        "price_per_month": price(quote.marginal_micros, HOURS_A_MONTH),
        "price_per_hour_at_least": price(quote.at_least_micros),
        "price_per_hour_at_most": price(quote.at_most_micros),
        "proved": planned and quote.proved,
        "average_price_per_hour": price(quote.average_micros),
        "average_price_per_month": price(quote.average_micros, HOURS_A_MONTH),
        "moves": quote.answer.moves,
        "unmet": unmet_rows(quote.answer.unmet),
        "clash": list(quote.answer.clash),
        "fix": quote.answer.fix,
        "rows": [
            {"replica": r.id, "where": words.place(r), "how": words.settings(r.config)}
            for r in quote.replicas
        ],
    }


def _quote_says(quote: Quote, unit: str, who: str) -> list[str]:
    if not quote.answer.planned:
        return [f"{who} cannot come: {clash_told(quote.answer)}."]
    price = f"{_more(quote.marginal_micros, unit)}{_month(quote.marginal_micros, unit)}"
    if quote.proved:
        price += "; exact, the difference of two proved plans."
    else:
        low, high = (words.price(p, unit) for p in (quote.at_least_micros, quote.at_most_micros))
        price += f"; the best plans differ by {low} to {high}."
    paid = words.price(quote.average_micros, unit)
    shared = f"By the GPUs that it uses it would pay {paid}{_month(quote.average_micros, unit)}."
    if not quote.fits:
        short = [_short_of(one) for one in quote.answer.unmet]
        return [f"{who} does not fit:", *short, f"As far as there is room: {price}", shared]
    says = [f"{who}: {price}", shared]
    others = (quote.answer.moves or 0) - len(quote.replicas)
    if others > 0:
        says.append(
            f"{words.plural(others, 'replica')} of others would start, stop or move for it."
        )
    return says


def headroom_data(found: Headroom, kind: str, name: str | None) -> Json:
    """``headroom -o json``."""
    whom = "All demand" if name is None else f"Demand of {kind} {name}"
    says = [f"{whom} can grow to {_factor(found.fits_ppm)} today's."]
    if found.breaks_ppm is None:
        says[0] = f"{whom} can grow to {_factor(found.fits_ppm)} today's, the most asked about."
    else:
        how = "no plan serves all" if found.proved else "no plan that serves all was found"
        says.append(f"At {_factor(found.breaks_ppm)} {how}:")
        says += [_short_of(one) for one in found.first]
    return {
        "question": "headroom",
        "says": says,
        "kind": kind,
        "name": name,
        "fits": found.fits_ppm / PPM,
        "breaks": None if found.breaks_ppm is None else found.breaks_ppm / PPM,
        "proved": found.proved,
        "unmet": unmet_rows(found.first),
        "rows": [],
    }


MOST_LOSSES = 40  # rows of a table


def survive_data(losses: Sequence[Loss], unit: str, promised: Mapping[str, str]) -> Json:
    """``survive -o json``: who is short at once, and after planning anew.

    ``promised``: deployments that must outlive the loss of any node, rack or zone, and of which.
    """
    return {
        "question": "survive",
        "unit": unit,
        "says": [*_survive_says(losses), *_promises(losses, promised), *_left_out(losses)],
        "losses": [_loss(loss) for loss in losses],
        "rows": [_loss_row(loss, unit) for loss in _shown(losses)],
    }


def _survive_says(losses: Sequence[Loss]) -> Iterator[str]:
    """A sentence for each kind of loss."""
    for kind in dict.fromkeys(loss.kind for loss in losses):
        some = [loss for loss in losses if loss.kind == kind]
        at_once = sum(bool(loss.short) for loss in some)
        after = sum(_short_after(loss) for loss in some)
        many = words.plural(len(some), kind)
        if not at_once and not after:
            yield f"Whichever of {many} is lost, nobody is short."
            continue
        until = f"{at_once or 'none'} leave somebody short until replicas move"
        yield f"Of {many} lost in turn, {until}, and {after or 'none'} after all is planned anew."


def _promises(losses: Sequence[Loss], promised: Mapping[str, str]) -> Iterator[str]:
    """Whether each deployment outlives what its ``survive`` says."""
    if not promised:
        return
    broken = {
        one.deployment: loss
        for loss in losses
        for one in loss.short
        if promised.get(one.deployment) == loss.kind
    }
    for name, loss in sorted(broken.items()):
        yield f"{name} should survive any {loss.kind}, but not {loss.name}."
    if not broken and any(loss.kind in promised.values() for loss in losses):
        yield "Every deployment outlives what its survive rule says, with no replica moved."
    yield "Planned anew, no second loss need be outlived: survive rules are left out there."


def _short_after(loss: Loss) -> bool:
    return bool(loss.answer.unmet) or not loss.answer.planned


def _shown(losses: Sequence[Loss]) -> Sequence[Loss]:
    """All, or of many those that leave somebody short, those who miss it for good first."""
    if len(losses) <= MOST_LOSSES:
        return losses
    bad = [loss for loss in losses if loss.short or _short_after(loss)]
    return sorted(bad, key=lambda x: (-_short_after(x), -len(x.short)))[:MOST_LOSSES]


def _left_out(losses: Sequence[Loss]) -> Iterator[str]:
    shown = _shown(losses)
    if len(shown) < len(losses):
        yield f"{len(shown)} of {len(losses)} losses are shown, the worst first; -o json has all."


def _loss(loss: Loss) -> Json:
    return {
        "kind": loss.kind,
        "name": loss.name,
        "replicas": list(loss.replicas),
        "deployments": list(loss.deployments),
        "short_at_once": [
            {
                "deployment": one.deployment,
                "missing_rps": rps(one.missing_mrps),
                "missing_replicas": one.missing_replicas,
            }
            for one in loss.short
        ],
        "planned_anew": entry(loss.answer),
    }


def _loss_row(loss: Loss, unit: str) -> Json:
    touched = Counter(r.rpartition("/")[0] for r in loss.replicas)
    return {
        "lost": f"{loss.kind} {loss.name}",
        "touches": ", ".join(n if c == 1 else f"{n} x{c}" for n, c in touched.items()),
        "short at once": _shorts(loss.short),
        "short after planning anew": _outcome(loss.answer),
        "price then": "" if loss.answer.price_micros is None else _price(loss.answer, unit),
    }


def retire_data(found: Retired, unit: str) -> Json:
    """``retire -o json``."""
    if found.nodes:
        count = words.plural(len(found.nodes), "node")
        says = [
            f"{count} can be switched off together: {', '.join(found.nodes)}.",
            f"All GPUs of theirs, used or not, are {words.price(found.worth_micros, unit)}.",
        ]
        if found.answer is not None and found.answer.moves:
            says.append(f"That takes {words.plural(found.answer.moves, 'move')} first.")
    else:
        says = ["Every node is needed."]
    without = "short without it too" if found.nodes else "short without it"
    return {
        "question": "retire",
        "unit": unit,
        "says": says,
        "nodes": list(found.nodes),
        "price_per_hour": money(found.worth_micros),
        "without_them": None if found.answer is None else entry(found.answer),
        "needed": [{"node": name, "without_it": entry(answer)} for name, answer in found.needed],
        "rows": [{"needed node": name, without: _outcome(answer)} for name, answer in found.needed],
    }


def buy_data(found: Purchase, offers: Sequence[Offer], unit: str) -> Json:
    """``buy -o json``."""
    counts = found.counts or tuple(0 for _ in offers)
    bought = [(o, n) for o, n in zip(offers, counts, strict=True) if n]
    return {
        "question": "buy",
        "unit": unit,
        "says": _bought_says(found, bought, unit),
        "serves": found.counts is not None,
        "nodes": {o.name: n for o, n in bought},
        "price_per_hour": money(found.price_micros),
        "price_per_month": money(found.price_micros * HOURS_A_MONTH),
        "price_per_hour_at_least": money(found.at_least_micros),
        "proved": found.proved,
        "mixes_tried": found.tried,
        "plan": entry(found.answer),
        "rows": [_bought_row(offer, count, unit) for offer, count in bought],
    }


def _bought_says(found: Purchase, bought: Sequence[tuple[Offer, int]], unit: str) -> list[str]:
    if found.counts is None:
        answer = found.answer
        if answer.unmet_proved or answer.status == "infeasible":
            says = ["All that is offered together does not do:"]
        else:
            says = ["No plan was found that serves all, even with all that is offered:"]
        return says + ([_short_of(one) for one in answer.unmet] or [_outcome(answer)])
    if not bought:
        return ["Nothing need be bought: all is served."]
    mix = " and ".join(f"{n} x {o.name}" for o, n in bought)
    price = f"{words.price(found.price_micros, unit)}{_month(found.price_micros, unit)}"
    proof = (
        "No cheaper mix of the offers does."
        if found.proved
        else f"Any mix that does costs {words.price(found.at_least_micros, unit)} at least."
    )
    return [f"Buy {mix}: {price}.", proof]


def _bought_row(offer: Offer, count: int, unit: str) -> Json:
    term = words.plural(offer.term_months, "month") if offer.term_months else "as long as you like"
    return {
        "offer": offer.name,
        "nodes": count,
        "what": f"{offer.node.gpus} x {offer.node.gpu.name}",
        "each": words.price(offer.total_micros(count) // count, unit),
        "together": words.price(offer.total_micros(count), unit),
        "kept for": term,
    }


def sensitivity_data(rules: Sequence[RulePrice], unit: str) -> Json:
    """``sensitivity -o json``."""
    dear = [r for r in rules if r.saved_micros > 0]
    says = [f"{words.plural(len(rules), 'rule')} asked, {len(dear)} cost something."]
    if not rules:
        says = ["No deployment states a rule that could be dropped."]
    return {
        "question": "sensitivity",
        "unit": unit,
        "says": says,
        "rules": [
            {
                "deployment": r.deployment,
                "rule": r.rule,
                "said": r.said,
                "price_per_hour": money(r.saved_micros),
                "would_be_served": list(r.serves_more),
                "proved": r.proved,
            }
            for r in rules
        ],
        "rows": [
            {
                "deployment": r.deployment,
                "rule": r.rule,
                "says": r.said,
                "costs": words.price(r.saved_micros, unit) + ("" if r.proved else " ?"),
                "without it": f"{', '.join(r.serves_more)} served" if r.serves_more else "",
            }
            for r in rules
        ],
    }


def _more(micros: int, unit: str) -> str:
    word = "more" if micros >= 0 else "less"
    return f"{words.price(abs(micros), unit)} {word}"


def _month(micros: int, unit: str) -> str:
    """Only money adds up over a month."""
    if unit == words.GPUS:
        return ""
    return f" ({money(abs(micros) * HOURS_A_MONTH):,.2f} {unit} a month)"


def _factor(ppm: int) -> str:
    return f"{words.number(ppm / PPM, 3)} times"


def _price(answer: Answer, unit: str) -> str:
    return words.price(answer.price_micros or 0, unit)


def _short_of(one: Unmet) -> str:
    fix = f"; {one.smallest_fix} would do" if one.smallest_fix else ""
    return f"{one.deployment} misses {missing(one)}: {one.reason}{fix}"


def _shorts(shorts: Sequence[Short]) -> str:
    return ", ".join(
        f"{s.deployment} {missing(Unmet(s.deployment, s.missing_mrps, s.missing_replicas, ''))}"
        for s in shorts
    )


def _outcome(answer: Answer) -> str:
    """Who is short in a scenario, or why there is no plan."""
    if answer.failed is not None:
        return answer.failed
    if not answer.planned:
        return "; ".join(answer.differences)
    return ", ".join(f"{one.deployment} {missing(one)}" for one in answer.unmet)
