"""The tower's frozen stages, run once.

What is frozen below the first trained tensor gives the same output in every epoch. Where that part
is a good share of the work it runs once, over a few augmented copies of each photo.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import onnxruntime as ort
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.lift.graph import write_graph
from models.lift.model import Model
from training.inputs import Cached, Inputs, Photos

# Below this share of the forward pass's operations a fresh crop in every epoch is worth more.
WORTHWHILE: Final = 0.2
MEMORY: Final = 4 * 2**30
BATCH: Final = 32


class PrefixCache:
    """The rows of one set of photos behind a tower's first stages, each stage computed once.

    The models that share it have the same tower below their own first trained tensor.
    """

    def __init__(self, photos: Photos, copies: int, device: torch.device) -> None:
        self._photos = photos
        self._copies = copies
        self._device = device
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
        stages = model.tower[source.stage : stage]
        module = stages if source.stage else nn.Sequential(model.normalise, stages)
        order = range(len(source.labels))
        size = max(1, BATCH // source.rows)
        batches: Iterator[Tensor] = (
            rows for copy in range(self._copies) for rows, _ in source.batches(order, size, copy)
        )
        run: Callable[[Tensor], Tensor] | None = None
        parts = []
        total = self._copies * -(-len(order) // size)
        for rows in track(batches, "Running the frozen stages", total, transient=True):
            run = run or runner(module, rows, self._device)
            parts.append(run(rows).half())
        tokens = torch.cat(parts)
        shape = (self._copies, len(order), source.rows, *tokens.shape[1:])
        return Cached(tokens.reshape(shape), source.labels, stage)

    def _bytes(self, model: Model, stage: int, size: int) -> int:
        with torch.no_grad():
            row: Tensor = model.tower[:stage](model.normalise(_blank(size)))
        return 2 * row.numel() * self._copies * len(self._photos.labels) * self._photos.rows


def runner(module: nn.Module, example: Tensor, device: torch.device) -> Callable[[Tensor], Tensor]:
    """`module` as a function without gradients, from and to the CPU.

    On a CPU it runs in ONNX Runtime, whose convolutions are several times as fast as torch's.
    """
    if device.type == "cuda":
        module = module.to(device).eval()

        @torch.no_grad()
        def run_torch(rows: Tensor) -> Tensor:
            output: Tensor = module(rows.to(device)).cpu()
            return output

        return run_torch

    session = _session(module.eval(), example)

    def run_onnx(rows: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"rows": rows.numpy()})[0])

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


def _session(module: nn.Module, example: Tensor) -> ort.InferenceSession:
    # The exporter would take a batch of one for a constant.
    pair = example[:1].repeat(2, *[1] * (example.ndim - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prefix.onnx"
        write_graph(module, pair, path, ["rows"], ["tokens"])
        options = ort.SessionOptions()
        options.log_severity_level = 3
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
