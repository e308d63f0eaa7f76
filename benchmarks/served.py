"""A service under measurement: a process of its own, started and stopped."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from taillift.models.errors import UserError

ROOT: Final = Path(__file__).parents[1]
READY_SECONDS: Final = 120
STOP_SECONDS: Final = 30
ASK_SECONDS: Final = 10

# A proxy that the environment names is not for this machine's own address.
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Served:
    url: str
    pid: int

    @property
    def memory(self) -> float:
        """MiB that are resident now."""
        return self._status("VmRSS") / 2**10

    @property
    def peak_memory(self) -> float:
        """MiB that were resident at once since `forget_peak`."""
        return self._status("VmHWM") / 2**10

    def _status(self, name: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1])

    @property
    def processor_seconds(self) -> float:
        """The processor time of all its threads so far, to the nanosecond."""
        # Linux's number for the clock of a process, as clock_getcpuclockid(3) makes it.
        return time.clock_gettime((~self.pid << 3) | 2)

    def metric(self, name: str) -> float:
        """The sum over all series of this name in /metrics."""
        with direct.open(f"{self.url}/metrics") as response:
            lines = response.read().decode().splitlines()
        series = [line for line in lines if re.match(rf"{name}[ {{]", line)]
        return sum(float(line.rpartition(" ")[2]) for line in series)

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


@contextmanager
def taillift(bundle: Path, *flags: str, module: str = "taillift") -> Iterator[Served]:
    """`taillift serve` on a free port, from when it is ready.

    In fp32, to compare like with like.
    """
    command = [sys.executable, "-m", module, "serve", str(bundle), "--precision", "fp32"]
    command += flags
    with served([*command, "--port", "{port}"], _readyz) as one:
        yield one


@contextmanager
def served(
    command: Sequence[str],
    ready: Callable[[str], bool],
    environment: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """Run `command`, in which "{port}" is filled in, until the block ends.

    It is ready when `ready(address)` is true. At the end it and the processes that it started get
    SIGTERM, and SIGKILL if they stay. Raises `UserError` if it does not become ready.
    """
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            if not _becomes_ready(process, url, ready):
                raise UserError(f"{command[0]} does not serve: {_end_of(log)}")
            yield Served(url, process.pid)
        finally:
            _stop(process)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def ask(url: str, body: bytes | None = None, kind: str = "image/jpeg") -> Any:
    """The JSON that answers GET, or POST of a body, with 200; None for any other answer."""
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with direct.open(request, timeout=ASK_SECONDS) as response:
            return json.load(response)
    except OSError:
        return None


def _readyz(url: str) -> bool:
    return ask(f"{url}/readyz") is not None


def _becomes_ready(
    process: "subprocess.Popen[bytes]", url: str, ready: Callable[[str], bool]
) -> bool:
    end = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < end:
        if ready(url):
            return True
        time.sleep(0.2)
    return False


def _end_of(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    with suppress(subprocess.TimeoutExpired, ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
