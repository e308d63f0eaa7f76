"""Frozen features: the output of the tower's frozen stages, computed once.

The stages below the first trained tensor give the same output in every epoch. If they are a good
part of the work, they run once, on a few augmented copies of each photo, and the result is kept on
the disk for other recipes and runs.
"""

import copy
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Final

import torch
from PIL import features as pillow
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from taillift.models.bundle.session import load_graph
from taillift.models.lift.model import Model
from taillift.models.lift.onnx_export import write_graph
from taillift.models.lift.tower import Tower
from taillift.training.console import note, steps_bar
from taillift.training.data.cache import ArrayCache
from taillift.training.fit.distributed import Processes
from taillift.training.fit.inputs import (
    CachedFeatures,
    Inputs,
    Photos,
    Pick,
    copy_epochs,
    first_copies,
)
from taillift.training.fit.provenance import machine, versions
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
# Raise it when other features than before are computed from the same photos.
FORMAT: Final = 1
# The parts of Pillow that make pixels of a photo.
READERS: Final = ("pil", "jpg", "libjpeg_turbo", "webp", "littlecms2")
# One process of each machine writes to its cache.
LOCAL_RANK: Final = int(os.environ.get("LOCAL_RANK", 0))

# Pixels, or rows behind some frozen stages, to rows behind more of them, both on the CPU.
Forward = Callable[[Tensor], Tensor]


class FrozenStages:
    """The first stages of one tower as functions, each compiled once, and the cache of features.

    Models that share them have the same tower below their own first trained tensor. `architecture`
    tells apart towers with the same tensors.
    """

    def __init__(
        self, device: torch.device, architecture: str = "", cache: ArrayCache | None = None
    ) -> None:
        """Run on `device`; without a `cache` nothing is kept for other runs."""
        self.cache = ArrayCache(0) if cache is None else cache
        self._device = device
        self._architecture = architecture
        self._forwards: dict[tuple[int, int], Forward] = {}
        self._fingerprints: dict[tuple[int, ...], str] = {}
        self._announced = False

    def forward(self, model: Model, start: int, stage: int, example: Tensor, rows: int) -> Forward:
        """Return the function from rows such as `example`, behind `start` stages, to `stage`.

        If `start` is 0, they are pixels. It depends on how many `rows` it is for: if they are few,
        torch runs the blocks on a CPU, and what is before them is shared.
        """
        embedding = model.tower.embedding_stages
        if not self._by_torch(model, stage, rows):
            return self._compiled(model, start, stage, example)
        blocks = model.tower[embedding:stage]
        if start:
            return torch.no_grad()(lambda tokens: blocks(tokens))
        embed = self._compiled(model, 0, embedding, example)
        return torch.no_grad()(lambda pixels: blocks(embed(pixels)))

    def announce_cache(self) -> None:
        """Tell the user once that features are kept, where, and how to bound that."""
        if self.cache.folder and not self._announced:
            note(f"Frozen features are kept in {self.cache}")
            self._announced = True

    def fingerprint(self, model: Model, cuts: Sequence[int], rows: int) -> str:
        """Return a text that changes with all that features depend on besides the photos.

        There are so many `rows` in all, which are rounded behind each of the stages `cuts`.
        """
        by_torch = self._by_torch(model, cuts[-1], rows)
        key = (*cuts, by_torch)
        if key not in self._fingerprints:
            tensors = hashlib.sha256()
            for part in (model.normalise, model.tower[: cuts[-1]]):
                for name, tensor in part.state_dict().items():
                    tensors.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    values = tensor.cpu().contiguous().flatten().view(torch.uint8)
                    tensors.update(values.numpy().data)
            weights = self._architecture, tensors.hexdigest()
            place = self._device.type, torch.get_num_threads(), machine()
            readers = [pillow.version(name) for name in READERS]
            parts = FORMAT, key, BATCH, weights, place, versions(), readers
            self._fingerprints[key] = repr(parts)
        return self._fingerprints[key]

    def _by_torch(self, model: Model, stage: int, rows: int) -> bool:
        few = rows < FEW_ROWS and self._device.type == "cpu"
        return few and 0 < model.tower.embedding_stages < stage

    def _compiled(self, model: Model, start: int, stage: int, example: Tensor) -> Forward:
        if (start, stage) not in self._forwards:
            part = model.tower[start:stage]
            module = part if start else nn.Sequential(model.normalise, part)
            self._forwards[start, stage] = compiled(module, example, self._device)
        return self._forwards[start, stage]


class FrozenFeatures:
    """The frozen features of one set of photos, behind as many stages as a model has frozen.

    If the embedding is a good part of the work, its output is rounded and kept, and what is behind
    further stages is always computed from that; if not, from the photos. So a run gets the same
    features whatever ran before it. Every process computes a part and gets all.
    """

    def __init__(
        self,
        photos: Photos,
        copies: Sequence[int],
        epochs: int,
        frozen: FrozenStages,
        processes: Processes,
        title: str = "Running the frozen stages",
        spread: bool = False,
    ) -> None:
        """Keep `copies` [N] crops of each photo: those of the first epochs.

        With `spread`, they are from as many of all `epochs`. Nothing is computed before
        `inputs_for` needs it; then `title` says what is being done.
        """
        self._photos = photos
        self._copies = torch.tensor(copies)
        self._epochs = epochs
        self._frozen = frozen
        self._processes = processes
        self._title = title
        self._spread = spread
        self._rows = int(self._copies.sum()) * photos.rows
        self._by_stage: dict[int, Inputs] = {0: photos}

    def inputs_for(self, model: Model, size: int) -> Inputs:
        """Return what to feed to `model`, which takes images of `size` S, in pixels.

        That is features behind all its frozen stages, or behind fewer if those fit the memory, or
        the photos themselves if features are not worthwhile. Collective.
        """
        # Two bytes a number, as float16.
        fitting = [
            stage
            for stage, numbers in worthwhile_stages(model, size).items()
            if 2 * numbers * self._rows <= MEMORY
        ]
        stage = next(iter(fitting), 0)
        if stage not in self._by_stage:
            embedding = model.tower.embedding_stages
            cuts = [embedding, stage] if embedding < stage and embedding in fitting else [stage]
            self._by_stage[stage] = self._compute(model, cuts)
        return self._by_stage[stage]

    def _compute(self, model: Model, cuts: Sequence[int]) -> CachedFeatures:
        """Run every copy of every photo through the model, from each of `cuts` to the next.

        The first copies of all photos are kept together, the second copies of those that have one,
        and so on: a recipe with more copies shares them with one that has fewer. Collective.
        """
        self._frozen.announce_cache()
        crops, cached, done = int(self._copies.sum()), 0, 0
        starts = self._copies.cumsum(0) - self._copies
        tokens: Tensor | None = None
        with steps_bar(self._title, crops, done) as show:

            def advance(photos: int) -> None:
                # Each photo is counted for each of the cuts.
                nonlocal done
                done += photos
                show(done // len(cuts), "")

            for number in range(int(self._copies.max())):
                having = (self._copies > number).nonzero().flatten()
                order = [(photo, self._epoch(photo, number)) for photo in having.tolist()]
                rows, found = self._behind(model, cuts, order, advance)
                cached += len(order) if found else 0
                if len(order) == crops:
                    tokens = rows
                    break
                if tokens is None:
                    tokens = rows.new_zeros(crops, *rows.shape[1:])
                if rows.dtype == torch.float:
                    tokens = tokens.float()
                tokens[starts[having] + number] = rows.to(tokens.dtype)
        assert tokens is not None
        if cached:
            note(f"{self._title}: {cached:,} of {crops:,} come from the cache")
        return CachedFeatures(tokens, self._copies, self._photos.labels, cuts[-1], self._epochs)

    def _epoch(self, photo: int, copy: int) -> int:
        return copy_epochs(int(self._copies[photo]), self._epochs)[copy] if self._spread else copy

    def _behind(
        self,
        model: Model,
        cuts: Sequence[int],
        order: Sequence[Pick],
        advance: Callable[[int], None],
    ) -> tuple[Tensor, bool]:
        """Return the rows [len(order), R, ...] behind the last of `cuts`.

        And whether they, or those behind an earlier cut, were in the cache. Collective.
        """
        cache, key = self._frozen.cache, None
        if cache.folder and (crops := self._photos.fingerprint(order)) is not None:
            how = self._frozen.fingerprint(model, cuts, self._rows)
            key = hashlib.sha256(f"{how} {crops}".encode()).hexdigest()
        array = cache.read(key) if key else None
        # Either all processes read them, or all compute their part.
        have = self._processes.all_reduce(torch.tensor(0.0 if array is None else 1.0))
        if array is not None and have == self._processes.size:
            advance(len(cuts) * len(order))
            return torch.from_numpy(array), True
        source: Inputs = self._photos
        found = False
        if len(cuts) > 1:
            before, found = self._behind(model, cuts[:-1], order, advance)
            ones, photos = torch.ones(len(order), dtype=torch.long), [photo for photo, _ in order]
            source = CachedFeatures(before, ones, self._photos.labels[photos], cuts[-2])
            order = first_copies(len(order))
        rows = self._run(model, source, cuts[-1], order, advance)
        if key and LOCAL_RANK == 0:
            cache.write(key, rows.numpy())
        return rows, found

    def _run(
        self,
        model: Model,
        source: Inputs,
        stage: int,
        order: Sequence[Pick],
        advance: Callable[[int], None],
    ) -> Tensor:
        """Run the rows of `source` through the model, up to `stage`: [len(order), R, ...].

        Collective.
        """
        size = max(1, BATCH // source.rows)
        # Every process sees the first batch, so that all choose the same dtype by it.
        own = self._processes.shard(range(0, len(order), size))
        starts = [0, *(start for start in own if start)]
        picks = [pick for start in starts for pick in order[start : start + size]]
        batches = (rows for rows, _ in source.batches(picks, size))
        first = next(batches)
        forward = self._frozen.forward(model, source.stage, stage, first, self._rows)
        output = forward(first)
        dtype = torch.half if output.abs().max() < HALF_RANGE else torch.float
        tokens = torch.zeros(len(order) * source.rows, *output.shape[1:], dtype=dtype)
        for start, rows in zip(starts, chain([first], batches), strict=True):
            output = output if rows is first else forward(rows)
            if start or self._processes.rank == 0:
                offset = start * source.rows
                tokens[offset : offset + len(output)] = output.to(dtype)
            advance(len(output) // source.rows * self._processes.size)
        self._processes.all_reduce_in_place(tokens)
        return tokens.view(-1, source.rows, *tokens.shape[1:])


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
