"""What GPUs with fixed layouts cannot hold is no way out in a certificate's proof."""

import pytest

from builders import a100, candidate, deployment, fleet, node, problem
from optimizer.domain.fleet import Device
from optimizer.domain.gpu import PlacedProfile
from optimizer.verify.certificate import proved_micros

HALVES = (PlacedProfile(0, "3g.40gb"), PlacedProfile(4, "3g.40gb"))


@pytest.mark.parametrize(
    ("shape", "fixed", "proved"),
    [
        ({"gpus": 2}, False, 2.0),
        ({"gpus": 2}, True, 4.0),
        ({"gpus": 1}, True, 1.0),
        ({"profile": "3g.40gb"}, True, 0.5),
        ({"profile": "2g.20gb"}, False, 0.25),
        ({"profile": "2g.20gb"}, True, 0.5),
    ],
    ids=["free", "one GPU is cut", "the other is whole", "stands", "may be cut", "stands not"],
)
def test_fixed_layouts_bar_what_they_do_not_hold(
    shape: dict[str, object], fixed: bool, proved: float
) -> None:
    product = a100()
    devices = (Device(0, layout=HALVES), Device(1, layout=()))
    cheap = node("cheap", product, 2, price=1.0, devices=devices, layouts_fixed=fixed)
    asked = problem(
        fleet(cheap, node("dear", product, 2, price=2.0)),
        [deployment(replicas=1)],
        [candidate("chat", product, **shape)],
    )
    mig = {"2g.20gb": 250_000.0, "3g.40gb": 500_000.0}
    values = [
        {"gpu": "a100", "price_micros": price, "whole": price, "mig": some, "shares": []}
        for price, some in ((1_000_000, mig), (2_000_000, {name: 2 * v for name, v in mig.items()}))
    ]
    assert proved_micros(asked, {"values": values}) == proved * 1_000_000
