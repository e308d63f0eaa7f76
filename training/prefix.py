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

from models.bundle.session import load_graph
from models.lift.graph import write_graph
from models.lift.model import Model
from training.inputs import Cached, Inputs, Photos
from training.progress import track

# Below this share of the forward pass's operations a fresh crop in every epoch is worth more.
WORTHWHILE: Final = 0.2
MEMORY: Final = 4 * 2**30
BATCH: Final = 32
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
        self._runs: dict[tuple[int, int], Run] = {}

    def run(self, model: Model, start: int, stop: int, example: Tensor) -> Run:
        """From rows behind `start` stages, pixels where 0, to rows behind `stop`."""
        if (start, stop) not in self._runs:
            stages = model.tower[start:stop]
            module = stages if start else nn.Sequential(model.normalise, stages)
            self._runs[start, stop] = runner(module, example, self._device)
        return self._runs[start, stop]


class PrefixCache:
    """The rows of one set of photos behind a tower's first stages, each stage computed once."""

    def __init__(self, photos: Photos, copies: Sequence[int], frozen: FrozenStages) -> None:
        """`copies` [N] says how many augmented copies of each photo to take."""
        self._copies = torch.tensor(copies)
        self._frozen = frozen
        self._stages: dict[int, Inputs] = {0: photos}

    def rows_for(self, model: Model, size: int) -> Inputs:
        """What `model` has to be fed: rows behind its frozen stages, or photos where that pays
        more or the memory is too small; `size` is S, in pixels."""
        stage = worthwhile_stages(model, size)
        if stage and self._bytes(model, stage, size) > MEMORY:
            stage = 0
        if stage not in self._stages:
            start = max(known for known in self._stages if known < stage)
            self._stages[stage] = self._extend(model, self._stages[start], stage)
        return self._stages[stage]

    def _extend(self, model: Model, source: Inputs, stage: int) -> Cached:
        order = [(photo, copy) for photo, count in enumerate(self._copies) for copy in range(count)]
        size = max(1, BATCH // source.rows)
        batches = (rows for rows, _ in source.batches(order, size))
        first = next(batches)
        run = self._frozen.run(model, source.stage, stage, first)
        every = track(chain([first], batches), "Running the frozen stages", -(-len(order) // size))
        outputs = (run(rows) for rows in every)
        start = next(outputs)
        kept = torch.half if start.abs().max() < HALF_RANGE else torch.float
        tokens = torch.cat([output.to(kept) for output in chain([start], outputs)])
        return Cached(
            tokens.view(-1, source.rows, *tokens.shape[1:]), self._copies, source.labels, stage
        )

    def _bytes(self, model: Model, stage: int, size: int) -> int:
        with torch.no_grad():
            row: Tensor = model.tower[:stage](model.normalise(_blank(size)))
        return 2 * row.numel() * int(self._copies.sum()) * self._stages[0].rows


def copies_for(labels: Sequence[int], counts: Sequence[int], crops: int, most: int) -> list[int]:
    """How many augmented copies of each photo to take: `crops` for a class, spread over its photos.

    At least `FEWEST` and at most `most` of one photo. A rare class's photos are seen in as many
    crops as training has time for, and a frequent class's many photos vary by themselves.
    """
    by_class = [min(most, max(FEWEST, -(-crops // count))) for count in counts]
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


def worthwhile_stages(model: Model, size: int) -> int:
    """How many frozen stages to run once: all of them, or none where they are little of the work.

    Operations are counted on one image of `size` S, in pixels.
    """
    stages = model.tower.frozen_stages
    with torch.no_grad():
        pixels = model.normalise(_blank(size))
        total = _operations(model.tower, pixels)
        frozen = _operations(model.tower[:stages], pixels) if stages else 0
    return stages if frozen >= WORTHWHILE * total else 0


def _blank(size: int) -> Tensor:
    return torch.zeros(1, size, size, 3, dtype=torch.uint8)


def _operations(module: nn.Module, inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        module(inputs)
    return int(counter.get_total_flops())
