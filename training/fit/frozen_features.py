"""The tower's frozen stages, run once.

What is frozen below the first trained tensor gives the same output in every epoch. Where that part
is a good share of the work it runs once, over a few augmented copies of each photo.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from taillift.models.bundle.session import load_graph
from taillift.models.lift.model import Model
from taillift.models.lift.onnx_export import write_graph
from taillift.training.console import track
from taillift.training.fit.distributed import Processes
from taillift.training.fit.inputs import Cached, Inputs, Photos, copy_epochs
from taillift.training.recipe.recipe import Augmentation

# Below this share of the forward pass's operations a fresh crop in every epoch is worth more.
WORTHWHILE: Final = 0.2
# In each process, for the rows that are kept.
MEMORY: Final = 4 * 2**30
BATCH: Final = 32
TITLE: Final = "Running the frozen stages"
FEWEST: Final = 2
# Half precision ends at 65,504; where one batch comes near it, another may pass it.
HALF_RANGE: Final = 1e4

Run = Callable[[Tensor], Tensor]


class FrozenStages:
    """The first stages of one tower as functions, each compiled once.

    The models that share them have the same tower below their own first trained tensor.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._runs: dict[int, Run] = {}

    def run(self, model: Model, stop: int, example: Tensor) -> Run:
        """From pixels to rows behind `stop` stages."""
        if stop not in self._runs:
            module = nn.Sequential(model.normalise, model.tower[:stop])
            self._runs[stop] = runner(module, example, self._device)
        return self._runs[stop]


class PrefixCache:
    """The rows of one set of photos behind a tower's first stages.

    They come from the photos, never from the rows behind fewer stages, which are rounded: what a
    run is fed must not depend on what ran before it. Every process computes a share and has all.
    """

    def __init__(
        self,
        photos: Photos,
        copies: Sequence[int],
        epochs: int,
        frozen: FrozenStages,
        processes: Processes,
    ) -> None:
        """`copies` [N] says how many of the `epochs` lend their crop of each photo."""
        self._photos = photos
        self._copies = torch.tensor(copies)
        self._epochs = epochs
        self._frozen = frozen
        self._launcher = processes
        self._stages: dict[int, Inputs] = {0: photos}

    def rows_for(self, model: Model, size: int) -> Inputs:
        """What `model` has to be fed: rows behind its frozen stages, or behind fewer where the
        memory is too small, or photos where that pays more; `size` is S, in pixels."""
        rows = int(self._copies.sum()) * self._photos.rows
        sizes = worthwhile_stages(model, size)
        stage = next((one for one, numbers in sizes.items() if 2 * numbers * rows <= MEMORY), 0)
        if stage not in self._stages:
            self._stages[stage] = self._compute(model, stage)
        return self._stages[stage]

    def _compute(self, model: Model, stage: int) -> Cached:
        photos = self._photos
        order = [
            (photo, epoch)
            for photo, count in enumerate(self._copies.tolist())
            for epoch in copy_epochs(count, self._epochs)
        ]
        size = max(1, BATCH // photos.rows)
        batches = range(0, len(order), size)
        # All see the first batch, and so agree on what it says of the numbers' range.
        starts = [0, *(one for one in self._launcher.share(batches) if one)]
        rows = photos.batches([pick for one in starts for pick in order[one : one + size]], size)
        first, _ = next(rows)
        run = self._frozen.run(model, stage, first)
        output = run(first)
        kept = torch.half if output.abs().max() < HALF_RANGE else torch.float
        tokens = torch.zeros(len(order) * photos.rows, *output.shape[1:], dtype=kept)
        every = track(chain([first], (one for one, _ in rows)), TITLE, len(starts))
        for start, batch in zip(starts, every, strict=True):
            output = output if batch is first else run(batch)
            if start or self._launcher.rank == 0:
                place = start * photos.rows
                tokens[place : place + len(output)] = output.to(kept)
        self._launcher.sum_in_place(tokens)
        tokens = tokens.view(-1, photos.rows, *tokens.shape[1:])
        return Cached(tokens, self._copies, photos.labels, stage, self._epochs)


def copies_for(
    labels: Sequence[int], counts: Sequence[int], augmentation: Augmentation, epochs: int
) -> list[int]:
    """How many augmented copies of each photo to take: a class's crops, spread over its photos.

    At least `FEWEST` of one photo, and at most `augmentation.copies` or one an epoch. A rare
    class's photos are seen in as many crops as training has time for, and a frequent class's many
    photos vary by themselves.
    """
    most, crops = min(augmentation.copies, epochs), augmentation.crops
    by_class = [min(most, max(FEWEST, -(-crops // max(1, count)))) for count in counts]
    return [by_class[label] for label in labels]


def runner(module: nn.Module, example: Tensor, device: torch.device) -> Run:
    """`module` as a function without gradients, from and to the CPU.

    On a CPU it runs in ONNX Runtime, whose convolutions are several times as fast as torch's.
    """
    if device.type == "cuda":
        # The model that it belongs to goes back to the CPU; this stays.
        module = copy.deepcopy(module).to(device).eval()

        @torch.no_grad()
        def run_torch(rows: Tensor) -> Tensor:
            output: Tensor = module(rows.to(device)).cpu()
            return output

        return run_torch

    # The exporter would take a batch of one for a constant.
    pair = example[:1].repeat(2, *[1] * (example.ndim - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prefix.onnx"
        write_graph(module.eval(), pair, path, ["rows"], ["tokens"])
        graph = load_graph(path)

    def run_onnx(rows: Tensor) -> Tensor:
        return torch.from_numpy(graph.run(None, {"rows": rows.numpy()})[0])

    return run_onnx


def worthwhile_stages(model: Model, size: int) -> dict[int, int]:
    """How many frozen stages may be run once, most first, and how many numbers a view then has.

    Not so few stages that they are little of the work. Operations are counted on one image of
    `size` S, in pixels.
    """
    done, numbers = [0], [0]
    with torch.no_grad():
        rows = model.normalise(_blank(size))
        for stage in model.tower:
            with FlopCounterMode(display=False) as counter:
                rows = stage(rows)
            done.append(done[-1] + int(counter.get_total_flops()))
            numbers.append(rows.numel())
    return {
        stages: numbers[stages]
        for stages in range(model.tower.frozen_stages, 0, -1)
        if done[stages] >= WORTHWHILE * done[-1]
    }


def _blank(size: int) -> Tensor:
    return torch.zeros(1, size, size, 3, dtype=torch.uint8)
