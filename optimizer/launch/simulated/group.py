"""Ranks of a simulated engine over several nodes: they meet at the leader's address, and live and
end as one, as those of real engines do."""

import asyncio
import contextlib

AGAIN_S = 0.1


class Leader:
    """Rank 0: waits for the others, and hears when one of them goes."""

    def __init__(self, others: int) -> None:
        self._others = others
        self._there: set[str] = set()
        self.whole = asyncio.Event()
        self.lost = asyncio.Event()

    async def listen(self, host: str, port: int) -> None:
        """Take the others in as they come."""
        await asyncio.start_server(self._joined, host, port)

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rank = (await reader.readline()).decode().strip()
        self._there.add(rank)
        print(f"rank {rank} is here", flush=True)
        if len(self._there) == self._others:
            self.whole.set()
        await reader.read()  # it says nothing more until it ends
        writer.close()
        print(f"rank {rank} is gone", flush=True)
        self.lost.set()


async def follow(host: str, port: int, rank: int, stopping: asyncio.Event) -> bool:
    """Another rank: stays until told to stop (True) or until the leader is gone (False)."""
    told = asyncio.create_task(stopping.wait())
    while not told.done():
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.wait([told], timeout=AGAIN_S)
            continue
        writer.write(f"{rank}\n".encode())
        print(f"rank {rank} has met the leader", flush=True)
        gone = asyncio.create_task(reader.read())
        await asyncio.wait([told, gone], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await gone
        break
    stopped = told.done()
    told.cancel()
    return stopped
