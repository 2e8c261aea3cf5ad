"""The solver's MIG columns against NVIDIA's published counts."""

import pytest

from builders import a100, placed
from optimizer.documents import catalogue
from optimizer.solver.columns import all_layouts, mig_patterns, refills
from optimizer.solver.where import layout, stranded_slices
from optimizer.verify.slots import layout_faults

# MIG User Guide: the five plain profiles of A100 and H100 have 19 largest layouts; placed at their
# starts they make 298 legal layouts, the empty one included.
PLAIN = ("1g", "2g", "3g", "4g", "7g")


def plain_profiles(product: str) -> tuple[str, ...]:
    gpu = catalogue().gpu(product)
    assert gpu is not None
    assert gpu.mig is not None
    found = [p for p in gpu.mig.profiles if p.plain and p.name.split(".")[0] in PLAIN]
    one = min(p.memory_slices for p in found)
    return tuple(p.name for p in found if p.compute_slices != 1 or p.memory_slices == one)


@pytest.mark.parametrize("product", ["a100-80gb-sxm", "a100-40gb-sxm", "h100-80gb-sxm"])
def test_layouts_are_as_many_as_nvidia_lists(product: str) -> None:
    gpu = catalogue().gpu(product)
    assert gpu is not None
    assert gpu.mig is not None
    names = plain_profiles(product)
    assert len(names) == 5
    every = all_layouts(gpu.mig, names)
    cells = {frozenset((p.start, p.profile) for p in one) for one in every}
    largest = [c for c in cells if not any(c < other for other in cells)]
    assert (len(every), len(largest)) == (298, 19)
    assert not any(layout_faults(gpu, one) for one in every)


def test_the_judge_refuses_what_no_column_has() -> None:
    gpu = a100()
    assert gpu.mig is not None
    names = ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
    known = {frozenset(one) for one in all_layouts(gpu.mig, names)}
    singles = [p for one in known if len(one) == 1 for p in one]
    legal = {frozenset({a, b}) for a in singles for b in singles if not layout_faults(gpu, [a, b])}
    assert {pair for pair in legal if len(pair) == 2} == {c for c in known if len(c) == 2}


def test_patterns_and_refills_stay_legal() -> None:
    gpu = a100()
    assert gpu.mig is not None
    names = ("1g.10gb", "2g.20gb", "3g.40gb")
    for pattern in mig_patterns(gpu.mig, names):
        profiles = tuple(sorted(name for name, count in pattern for _ in range(count)))
        assert not layout_faults(gpu, layout(gpu.mig, (), (), profiles))
    held = layout(gpu.mig, (), (), ("2g.20gb", "3g.40gb"))
    for refill in refills(gpu.mig, (("chat/0", held[0]),), held, names):
        stays = held[:1] if refill.stays else ()
        profiles = tuple(sorted(name for name, count in refill.added for _ in range(count)))
        assert not layout_faults(gpu, [*stays, *layout(gpu.mig, stays, held, profiles)])


def test_stranded_slices_are_those_that_hold_no_half_gpu() -> None:
    gpu = a100()
    assert gpu.mig is not None
    torn = (placed("1g.10gb@3"), placed("1g.10gb@4"))
    assert stranded_slices(gpu.mig, torn) == 6
    assert stranded_slices(gpu.mig, layout(gpu.mig, (), (), ("1g.10gb", "1g.10gb"))) < 3
    assert stranded_slices(gpu.mig, ()) == 0
