"""How many requests a simulated engine works on at once."""

import asyncio

import pytest

from optimizer.launch.simulated.admission import Admission, QueueFull


def admitted(admission: Admission, *tokens: int) -> tuple[int, int]:
    """(running, waiting) once requests of so many tokens have come."""

    async def come() -> tuple[int, int]:
        tasks = [asyncio.create_task(admission.enter(t)) for t in tokens]
        await asyncio.sleep(0)
        counts = admission.running, admission.waiting
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return counts

    return asyncio.run(come())


@pytest.mark.parametrize(
    ("tokens", "counts"),
    [((), (0, 0)), ((1, 1), (2, 0)), ((1, 1, 1), (2, 1))],
    ids=["nobody", "at the limit", "one too many"],
)
def test_sequences(tokens, counts):
    assert admitted(Admission(seqs=2), *tokens) == counts


@pytest.mark.parametrize(
    ("tokens", "counts"),
    [((60, 40), (2, 0)), ((60, 41), (1, 1)), ((60, 41, 1), (1, 2))],
    ids=["just fits", "one token too many", "nobody overtakes"],
)
def test_kv_cache(tokens, counts):
    assert admitted(Admission(seqs=9, kv_tokens=100), *tokens) == counts


def test_a_full_queue_turns_away():
    async def come() -> None:
        admission = Admission(seqs=1, queue=1)
        await admission.enter(1)
        waiting = asyncio.create_task(admission.enter(1))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await admission.enter(1)
        admission.leave(1)
        await waiting
        assert (admission.running, admission.waiting) == (1, 0)

    asyncio.run(come())


def test_who_gives_up_in_line_or_at_the_door_leaves_no_room_taken():
    async def come() -> None:
        admission = Admission(seqs=1)
        await admission.enter(1)
        first, second = (asyncio.create_task(admission.enter(1)) for _ in range(2))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        admission.leave(1)  # the first may go in now, and gives up at this very moment
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert (admission.running, admission.waiting, admission.tokens) == (0, 0, 0)

    asyncio.run(come())
