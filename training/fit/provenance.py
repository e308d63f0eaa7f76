"""Where a model comes from: package versions, machine, commit, precision, time and memory."""

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Self

import torch
from torch import Tensor

from taillift.models.bundle.schema import GROUPS, Group
from taillift.training.fit.distributed import Precision, Processes
from taillift.training.fit.progress import Progress
from taillift.training.recipe.losses import CHANCE, FIRST, Cues
from taillift.training.recipe.recipe import Part

PACKAGES: Final = ("taillift", "torch", "open_clip_torch", "timm", "numpy", "onnxruntime")
CPU_INFO: Final = Path("/proc/cpuinfo")


class Machine(Part):
    """The first process's machine. `gpus` are all its GPUs, whether the run used them or not."""

    processor: str
    cores: int
    gpus: tuple[str, ...]


class PseudoLabelGroup(Part):
    """The pseudo-labels of one group's classes, over the unlabelled photos of an epoch.

    `accepted` were given; `judged` of them are on photos whose truth is known, and `right` of these
    are the truth. `photos` are truly of the group. So right / judged is the precision, and
    right / photos the recall.
    """

    accepted: int
    judged: int
    right: int
    photos: int


class PseudoLabelEpoch(Part):
    """The pseudo-labels of an epoch: how many of the photos `seen` were `accepted`, and as what.

    A photo counts each time that it is seen. Those that are `soft` have no pseudo-label and teach
    softly, which no run before 0.2.0 has counted. `foreign` photos are known to be of no class.
    """

    seen: int
    accepted: int
    soft: int = 0
    foreign: int
    foreign_accepted: int
    foreign_soft: int = 0
    groups: dict[Group, PseudoLabelGroup]

    def __str__(self) -> str:
        judged = sum(group.judged for group in self.groups.values())
        right = sum(group.right for group in self.groups.values())
        known = f", {100 * right / judged:.0f} % of them right" if judged else ""
        return f"pseudo-labels for {100 * self.accepted / max(1, self.seen):.0f} % of photos{known}"


class CueEvidence(Part):
    """Whether cues were on, and why: what zero-shot CLIP knows of the rarest group's photos.

    Of its training `photos`, the share `known` has its class among zero-shot's `first` classes.
    """

    on: bool
    group: Group
    photos: int
    first: int
    known: float
    gate: float

    @classmethod
    def of(cls, cues: Cues, logits: Tensor, labels: Tensor, groups: Sequence[Group]) -> Self:
        """Judge by the zero-shot logits [N, C] of all training photos, whose classes are `labels`.

        `groups` has one entry a class.
        """
        group = next(group for group in reversed(GROUPS) if group in groups)
        rare = torch.tensor([groups[label] == group for label in labels.tolist()])
        first = min(FIRST, len(groups) // CHANCE)
        best = logits[rare].topk(first, 1).indices
        known = (best == labels[rare, None]).any(1).double().mean().item()
        return cls(
            on=known >= cues.gate,
            group=group,
            photos=int(rare.sum()),
            first=first,
            known=round(known, 4),
            gate=cues.gate,
        )

    def __str__(self) -> str:
        state = f"cues are {'on' if self.on else 'off'}"
        if not self.first and self.on:
            return f"{state}: a gate of 0 is always open"
        if not self.first:
            return f"{state}: of fewer than {CHANCE} classes, chance alone holds too many"
        return (
            f"{state}: zero-shot's first {self.first} hold the truth "
            f"for {100 * self.known:.1f} % of {self.photos:,} training photos of {self.group}-shot "
            f"classes (gate: {100 * self.gate:g} %)"
        )


class Provenance(Part):
    """The circumstances of one run.

    `losses` is the mean loss of each epoch. `seconds` is the time in the training loop, with that
    before interruptions; `waiting` is the share of it spent waiting for photos. `peak_memory` and
    `peak_gpu_memory` are the most that the first process had at once, in bytes. `revision` is the
    git commit of the working directory, `changed` whether tracked files differed from it; both are
    None outside a repository. `pseudo_labels` has an entry for each epoch, and none without
    unlabelled photos. `cues` is None if the recipe has none.
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
    pseudo_labels: tuple[PseudoLabelEpoch, ...] = ()
    cues: CueEvidence | None = None


def new_provenance(
    processes: Processes,
    progress: Progress | None,
    pseudo_labels: tuple[PseudoLabelEpoch, ...] = (),
    cues: CueEvidence | None = None,
) -> Provenance:
    """Return the provenance of a finished run; `progress` is None if nothing was trained."""
    revision = _git("rev-parse", "HEAD")
    seconds = progress.seconds if progress else 0.0
    cuda = processes.device.type == "cuda"
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
        peak_gpu_memory=torch.cuda.max_memory_allocated(processes.device) if cuda else None,
        losses=tuple(progress.losses) if progress else (),
        pseudo_labels=pseudo_labels,
        cues=cues,
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a result, if installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    # The installed metadata lacks what torch was built for, such as +cu130.
    installed["torch"] = str(torch.__version__)
    return installed


def machine() -> Machine:
    """Return this machine's processor, number of cores and GPUs."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(
        processor=models[0] if models else platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        gpus=tuple(torch.cuda.get_device_name(gpu) for gpu in range(torch.cuda.device_count())),
    )


def peak_memory() -> int:
    """Return the most memory that this process has had so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, in KiB on Linux.
    return peak if sys.platform == "darwin" else peak * 1024


def _git(*arguments: str) -> str | None:
    """Return git's output in the working directory; None if git fails or is not installed."""
    try:
        completed = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip()
