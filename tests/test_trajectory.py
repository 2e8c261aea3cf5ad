"""The best known price and bound over time, whatever order the words of a search come in."""

from optimizer.domain.outcome import Objective, Outcome, Progress, Termination
from optimizer.domain.placement import Placement
from optimizer.domain.plan import Sighting
from optimizer.trajectory import Trajectory


def test_what_is_known_never_gets_worse_and_is_told_once():
    told: list[Progress] = []
    times = iter(range(10))
    seen = Trajectory(lambda: next(times), told.append)
    seen(Progress("unmet", 5, 0))
    seen(Progress("price_per_hour", bound=10))
    seen(Progress("price_per_hour", 30, 5))
    seen(Progress("price_per_hour", 40, 10))
    seen(Progress("price_per_hour", bound=99))
    outcome = Outcome(Termination.OPTIMAL, Placement(), (Objective("price_per_hour", 30, 30),))
    assert seen.end(outcome) == (Sighting(1, None, 10), Sighting(2, 30, 10), Sighting(4, 30, 30))
    assert told[-1] == Progress("price_per_hour", 30, 30)
    assert [p.phase for p in told] == ["unmet"] + 4 * ["price_per_hour"]


def test_the_last_word_is_the_outcome_even_when_it_is_worse():
    seen = Trajectory(lambda: 0.0)
    seen(Progress("price_per_hour", 20, 10))
    outcome = Outcome(Termination.LIMIT, Placement(), (Objective("price_per_hour", 25, 10),))
    assert seen.end(outcome)[-1] == Sighting(0.0, 25, 10)


def test_prices_that_nothing_placed_reached_are_not_told():
    times = iter(range(10))
    seen = Trajectory(lambda: next(times))
    for price, bound in ((40, 10), (20, 10), (20, 15)):
        seen(Progress("price_per_hour", price, bound))
    outcome = Outcome(Termination.LIMIT, Placement(), (Objective("price_per_hour", 25, 15),))
    told = seen.end(outcome)
    assert told == (Sighting(1, 40, 10), Sighting(2, None, 10), Sighting(3, None, 15), told[-1])
    assert told[-1] == Sighting(4, 25, 15)
