"""How a model came about: by which versions, on what machine, in which numbers, how fast."""

import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import torch

from taillift.training.fit.distributed import Precision, Processes
from taillift.training.fit.resume import Progress
from taillift.training.recipe.recipe import Part

PACKAGES: Final = ("taillift", "torch", "open_clip_torch", "timm", "numpy", "onnxruntime")
CPU_INFO: Final = Path("/proc/cpuinfo")


class Machine(Part):
    """The first process's machine; `gpus` are all that it has."""

    processor: str
    cores: int
    gpus: tuple[str, ...]


class Provenance(Part):
    """One run. `losses` is each epoch's mean loss.

    `seconds` are the training loop's, over all its continuations; `waiting` is the share of them in
    which it had to wait for photos. The memory is the most that the first process had at once, in
    bytes. `revision` is the git commit of the working directory, `changed` whether files were not
    as committed; both None outside a repository.
    """

    versions: dict[str, str]
    machine: Machine
    revision: str | None
    changed: bool | None
    precision: Precision | None
    processes: int
    seconds: float
    waiting: float
    peak_memory: int
    peak_gpu_memory: int | None
    losses: tuple[float, ...]


def new_provenance(processes: Processes, progress: Progress | None) -> Provenance:
    """Of a run that is finished; `progress` is None where nothing was trained."""
    revision = _git("rev-parse", "HEAD")
    seconds = progress.seconds if progress else 0.0
    return Provenance(
        versions=versions(),
        machine=machine(),
        revision=revision,
        changed=None if revision is None else bool(_git("status", "--porcelain", "-uno")),
        precision=progress.precision if progress else None,
        processes=processes.size,
        seconds=round(seconds, 3),
        waiting=round(progress.waited / seconds, 4) if progress and seconds else 0.0,
        peak_memory=peak_memory(),
        peak_gpu_memory=_peak_gpu_memory(processes.device),
        losses=tuple(progress.losses) if progress else (),
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that make a difference, where they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    # The installed metadata lacks what torch was built for, such as +cu130.
    found["torch"] = str(torch.__version__)
    return found


def machine() -> Machine:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Machine(processor=_processor(), cores=os.cpu_count() or 1, gpus=tuple(gpus))


def peak_memory() -> int:
    """The most memory that this process has had so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_gpu_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _processor() -> str:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    """What git says in the working directory; None where it fails or is not installed."""
    try:
        found = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
