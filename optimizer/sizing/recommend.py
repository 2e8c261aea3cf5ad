"""Engine flags for who gave none: the memory it may take, and how long and how many requests."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from optimizer.domain.engine import EngineCard
from optimizer.domain.units import MIB
from optimizer.sizing.memory import MemoryBudget, Settings, longest_context

FEWER_SEQUENCES = (256, 64, 16, 8, 1)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Settings that start with a margin, their flags in the engine's own words, their budget."""

    settings: Settings
    flags: tuple[str, ...]
    budget: MemoryBudget


def recommended(
    card: EngineCard,
    settings: Settings,
    budget_of: Callable[[Settings], MemoryBudget],
    least_tokens: int,
) -> Recommendation | None:
    """The longest context that starts with a margin, at the most requests at once; None: no way.

    ``settings``: as the engine would start by itself, at the longest context the model knows.
    ``budget_of`` takes the largest safe fraction where none is set. Contexts shorter than
    ``least_tokens`` serve nobody; fewer requests at once free what the sampler would take.
    """
    for seqs in (None, *FEWER_SEQUENCES):
        asked = replace(settings, max_num_seqs=seqs)
        budget = budget_of(asked)
        if seqs is not None and seqs >= budget_of(settings).max_num_seqs:
            continue
        if not budget.surely_fits:
            spared = budget.layout.blocks((budget.kv_cache_mib - budget.margin_mib) * MIB)
            length = longest_context(budget, spared)
            if length < max(1, least_tokens):
                continue
            asked = replace(asked, max_model_len=length)
            budget = budget_of(asked)
        if budget.surely_fits:
            return Recommendation(asked, flags_of(card, budget), budget)
    return None


def flags_of(card: EngineCard, budget: MemoryBudget) -> tuple[str, ...]:
    """The settings of a budget as the engine's command line takes them."""
    values = {
        "fraction": f"{budget.fraction:g}",
        "max_model_len": str(budget.max_model_len),
        "max_num_seqs": str(budget.max_num_seqs),
        "max_num_batched_tokens": str(budget.max_num_batched_tokens),
    }
    return tuple(part for name, flag in card.flags for part in (flag, values[name]))
