"""Frozen features: the output of the tower's frozen stages, computed once.

The stages below the first trained tensor give the same output in every epoch. If they are a good
part of the work, they run once, on a few augmented copies of each photo.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from taillift.models.bundle.session import load_graph
from taillift.models.lift.model import Model
from taillift.models.lift.onnx_export import write_graph
from taillift.models.lift.tower import Tower
from taillift.training.console import track
from taillift.training.fit.distributed import Processes
from taillift.training.fit.inputs import CachedFeatures, Inputs, Photos, copy_epochs
from taillift.training.recipe.recipe import Augmentation

# If the frozen stages do less than this share of the operations, a fresh crop in every epoch is
# worth more than the time that they take.
WORTHWHILE: Final = 0.2
# Bytes of frozen features that each process may keep for one set of photos.
MEMORY: Final = 4 * 2**30
# Rows that go through the frozen stages at once.
BATCH: Final = 32
# Fewest augmented copies of a photo.
FEWEST: Final = 2
# For fewer rows, compiling the blocks of a transformer takes longer than torch does to run them.
FEW_ROWS: Final = 300
# float16 ends at 65,504: features whose first batch comes near it are kept in float32.
HALF_RANGE: Final = 1e4

# Pixels to rows behind the frozen stages, both on the CPU.
Forward = Callable[[Tensor], Tensor]


class FrozenStages:
    """The first stages of one tower as functions, each compiled once.

    Models that share them have the same tower below their own first trained tensor.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._forwards: dict[int, Forward] = {}

    def forward(self, model: Model, stage: int, example: Tensor, rows: int) -> Forward:
        """Return the function from pixels such as `example` to rows behind `stage` stages.

        It depends on how many `rows` it is for: if they are few, torch runs the blocks on a CPU,
        and what is before them is shared.
        """
        embedding = model.tower.embedding_stages
        if rows < FEW_ROWS and 0 < embedding < stage and self._device.type == "cpu":
            embed, blocks = self._compiled(model, embedding, example), model.tower[embedding:stage]
            return torch.no_grad()(lambda pixels: blocks(embed(pixels)))
        return self._compiled(model, stage, example)

    def _compiled(self, model: Model, stage: int, example: Tensor) -> Forward:
        if stage not in self._forwards:
            module = nn.Sequential(model.normalise, model.tower[:stage])
            self._forwards[stage] = compiled(module, example, self._device)
        return self._forwards[stage]


class FrozenFeatures:
    """The frozen features of one set of photos, behind as many stages as a model has frozen.

    They are always computed from the photos, never from features behind fewer stages, which are
    rounded: a run must get the same features whatever ran before it. Every process computes a part
    and gets all.
    """

    def __init__(
        self,
        photos: Photos,
        copies: Sequence[int],
        epochs: int,
        frozen: FrozenStages,
        processes: Processes,
        title: str = "Running the frozen stages",
    ) -> None:
        """Keep `copies` [N] crops of each photo, from as many of the `epochs`.

        Nothing is computed before `inputs_for` needs it; then `title` says what is being done.
        """
        self._photos = photos
        self._copies = torch.tensor(copies)
        self._epochs = epochs
        self._frozen = frozen
        self._processes = processes
        self._title = title
        self._by_stage: dict[int, Inputs] = {0: photos}

    def inputs_for(self, model: Model, size: int) -> Inputs:
        """Return what to feed to `model`, which takes images of `size` S, in pixels.

        That is features behind all its frozen stages, or behind fewer if those fit the memory, or
        the photos themselves if features are not worthwhile. Collective.
        """
        rows = int(self._copies.sum()) * self._photos.rows
        # Two bytes a number, as float16.
        fitting = (
            stage
            for stage, numbers in worthwhile_stages(model, size).items()
            if 2 * numbers * rows <= MEMORY
        )
        stage = next(fitting, 0)
        if stage not in self._by_stage:
            self._by_stage[stage] = self._compute(model, stage)
        return self._by_stage[stage]

    def _compute(self, model: Model, stage: int) -> CachedFeatures:
        """Run every copy of every photo through the model's first `stage` stages. Collective."""
        photos = self._photos
        order = [
            (photo, epoch)
            for photo, copies in enumerate(self._copies.tolist())
            for epoch in copy_epochs(copies, self._epochs)
        ]
        size = max(1, BATCH // photos.rows)
        # Every process sees the first batch, so that all choose the same dtype by it.
        own = self._processes.shard(range(0, len(order), size))
        starts = [0, *(start for start in own if start)]
        picks = [pick for start in starts for pick in order[start : start + size]]
        batches = (rows for rows, _ in photos.batches(picks, size))
        first = next(batches)
        forward = self._frozen.forward(model, stage, first, len(order) * photos.rows)
        output = forward(first)
        dtype = torch.half if output.abs().max() < HALF_RANGE else torch.float
        tokens = torch.zeros(len(order) * photos.rows, *output.shape[1:], dtype=dtype)
        tracked = track(chain([first], batches), self._title, len(starts))
        for start, rows in zip(starts, tracked, strict=True):
            output = output if rows is first else forward(rows)
            if start or self._processes.rank == 0:
                offset = start * photos.rows
                tokens[offset : offset + len(output)] = output.to(dtype)
        self._processes.all_reduce_in_place(tokens)
        tokens = tokens.view(-1, photos.rows, *tokens.shape[1:])
        return CachedFeatures(tokens, self._copies, photos.labels, stage, self._epochs)


def remaining_network(model: Model, stage: int) -> nn.Module:
    """Return the network from rows behind the tower's first `stage` stages to features.

    If `stage` is 0, it begins with pixels.
    """
    return model.tower[stage:] if stage else nn.Sequential(model.normalise, model.tower)


def copies_for(
    labels: Sequence[int], counts: Sequence[int], augmentation: Augmentation, epochs: int
) -> list[int]:
    """Return how many augmented copies to keep of each photo, whose class is in `labels`.

    A class's `augmentation.crops` are spread over its photos: at least `FEWEST` of each photo, and
    at most `augmentation.copies` or one an epoch. So the photos of a rare class are seen in as many
    crops as there is time for; the many photos of a frequent class vary by themselves.

    If crops grow from epoch to epoch, every photo has one an epoch, up to `augmentation.copies`:
    with fewer, the growth would be a step.
    """
    most, crops = min(augmentation.copies, epochs), augmentation.crops
    if augmentation.grows:
        return [most] * len(labels)
    by_class = [min(most, max(FEWEST, -(-crops // max(1, count)))) for count in counts]
    return [by_class[label] for label in labels]


def compiled(module: nn.Module, example: Tensor, device: torch.device) -> Forward:
    """Return `module` as a function without gradients, from and to the CPU.

    On a CPU it runs in ONNX Runtime, whose convolutions are several times as fast as torch's.
    """
    if device.type == "cuda":
        # The module's model goes back to the CPU after training; this copy stays on the GPU.
        module = copy.deepcopy(module).to(device).eval()

        @torch.no_grad()
        def run_torch(rows: Tensor) -> Tensor:
            output: Tensor = module(rows.to(device)).cpu()
            return output

        return run_torch

    # The exporter would treat a batch of one as a constant.
    pair = example[:1].repeat(2, *[1] * (example.ndim - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frozen.onnx"
        write_graph(module.eval(), pair, path, ["rows"], ["tokens"])
        graph = load_graph(path)

    def run_onnx(rows: Tensor) -> Tensor:
        return torch.from_numpy(graph.run(None, {"rows": rows.numpy()})[0])

    return run_onnx


def worthwhile_stages(model: Model, size: int) -> dict[int, int]:
    """Return the stages up to which running the tower once is worthwhile, the last one first.

    Maps each to how many numbers one view has behind it. A stage is worthwhile if all stages up to
    it are frozen and do at least `WORTHWHILE` of the tower's operations, counted on one image of
    `size` S, in pixels.
    """
    counted = stage_operations(model.tower, size)
    operations = [0, *accumulate(operations for operations, _ in counted)]
    return {
        stages: counted[stages - 1][1]
        for stages in range(model.tower.frozen_stages, 0, -1)
        if operations[stages] >= WORTHWHILE * operations[-1]
    }


@torch.no_grad()
def stage_operations(tower: Tower, size: int) -> list[tuple[int, int]]:
    """Return the floating-point operations of each stage, and the numbers behind it.

    Both are counted on one view of `size` S, in pixels.
    """
    rows, counted = torch.zeros(1, 3, size, size), []
    for stage in tower:
        with FlopCounterMode(display=False) as counter:
            rows = stage(rows)
        counted.append((int(counter.get_total_flops()), rows.numel()))
    return counted
