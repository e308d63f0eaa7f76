"""The service as a process: started, stopped, and weighed."""

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from tests.chaos.requests import Request, head
from tests.chaos.wire import Reply, exchange

READY_SECONDS = 60


class Weight(NamedTuple):
    """Resident memory in MiB, and open file descriptors."""

    memory: float
    files: int


class Service:
    """`taillift serve` on one port; what it logs is added to `log`."""

    def __init__(self, bundle: Path, port: int, log: Path, flags: Mapping[str, object]) -> None:
        self._command = [sys.executable, "-m", "taillift", "serve", str(bundle)]
        self._command += [
            "--port",
            str(port),
            *(str(part) for flag in flags.items() for part in flag),
        ]
        self.port = port
        self.log = log
        self._process: Process | None = None

    async def start(self) -> float:
        """Start it and wait until it is ready; returns the seconds that it took."""
        began = monotonic()
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=DEVNULL, stderr=log
            )
        while not await self.ready():
            if self._process.returncode is not None or monotonic() - began > READY_SECONDS:
                raise RuntimeError(f"the service did not start: {self.log.read_text()[-1000:]}")
            await asyncio.sleep(0.05)
        return monotonic() - began

    async def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return await self._process.wait()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def ready(self) -> bool:
        reply = await self.get("/readyz")
        return reply is not None and reply.status == 200

    async def get(self, path: str) -> Reply | None:
        request = Request(head(path, b"", "GET"), [], frozenset({200}))
        return (await exchange(request, self.port)).reply

    def weight(self) -> Weight:
        assert self._process is not None
        folder = Path(f"/proc/{self._process.pid}")
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines())
        memory = int(status["VmRSS"].split()[0]) / 2**10
        return Weight(memory, len(list((folder / "fd").iterdir())))
