"""Measure the time and memory of one training step, or the time of a comparison of recipes.

    python -m benchmarks.training                     # ViT-B/16, random weights
    python -m benchmarks.training --batch 32 --precision bf16
    python -m benchmarks.training --compare wardrobe-lt --against ../before --busy 2 --rounds 3

Prints the results and writes them to a file. Three ways to train take turns, each in its own
process: AdaptFormer in taillift's tower, full fine-tuning in the same tower, and the same
AdaptFormer attached to open_clip's own blocks with hooks. Every process repeats its step and the
fastest counts, because other programs on the machine can only slow it down.

With `--compare`, runs of `taillift compare` take turns instead: without the cache of frozen
features, with an empty one, with that of an earlier run, and, with `--against`, in another checkout
of this repository. With `--busy`, each is also run next to so many processes that do nothing but
compute. All have to end with the same weights, but for those of the other checkout.
"""

import argparse
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, get_args

import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from torch import Tensor, nn

from benchmarks.tables import RESULTS, markdown, write_result
from taillift.models.lift.convert import convert
from taillift.models.lift.tuners import AdaptFormer, Full

Way = Literal["AdaptFormer", "full fine-tuning", "AdaptFormer on open_clip's blocks, by hooks"]
WAYS: Final = get_args(Way)
CLASSES: Final = 100
PRECISIONS: Final = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


ROOT: Final = Path(__file__).parents[1]
FULL: Final = "with the cache of an earlier run"


class Hooked(nn.Module):
    """open_clip's tower with a branch next to each MLP, as an adapter library would add it."""

    def __init__(self, visual: Any, rank: int) -> None:
        super().__init__()
        visual.proj = None
        self.visual = visual
        width = visual.transformer.width
        self.branches = nn.ModuleList()
        for block in visual.transformer.resblocks:
            branch = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, rank), nn.ReLU(), nn.Linear(rank, width)
            )
            self.branches.append(branch)
            block.ln_2.register_forward_pre_hook(self._keep(branch))
            block.mlp.register_forward_hook(self._add(branch))

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.visual(pixels)
        return features

    @staticmethod
    def _keep(branch: nn.Module) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            branch.residual = inputs[0]

        return hook

    @staticmethod
    def _add(branch: nn.Module) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            added: Tensor = branch(branch.residual)
            return output + added

        return hook


def build(way: Way, architecture: str) -> nn.Module:
    """Return the tower in which only the tensors that `way` trains are unfrozen."""
    # Not at the top: models.lift has to make torchvision importable first.
    import open_clip

    visual: Any = open_clip.create_model(architecture).visual
    visual.requires_grad_(False)
    if way == WAYS[2]:
        rank = AdaptFormer().resolved(CLASSES, visual.transformer.layers, 0).rank
        assert rank is not None
        return Hooked(visual, rank)
    tower = convert(visual)
    spec = AdaptFormer() if way == WAYS[0] else Full()
    width = tower.blocks[0].norm1.normalized_shape[0]
    spec.resolved(CLASSES, len(tower.blocks), width).attach(tower.blocks)
    return tower


def tower_size(architecture: str) -> int:
    """Return the side of the architecture's images in pixels."""
    import open_clip

    size: int = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
    return size


def measure(pipe: Connection, way: Way, options: argparse.Namespace) -> None:
    """Answer each true message with the seconds of one step, a false one with the peak memory.

    The memory is in GiB.
    """
    device = torch.device(options.device)
    tower = build(way, options.architecture).to(device)
    size = tower_size(options.architecture)
    trained = [tensor for tensor in tower.parameters() if tensor.requires_grad]
    optimiser = torch.optim.SGD(trained, 0.01, momentum=0.9)
    pixels = torch.randn(options.batch, 3, size, size, device=device)
    dtype = PRECISIONS[options.precision]
    while pipe.recv():
        start = time.perf_counter()
        optimiser.zero_grad()
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            features = tower(pixels)
        loss: Any = F.normalize(features.float(), dim=-1).square().sum()
        loss.backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - start)
    if device.type == "cuda":
        pipe.send(torch.cuda.max_memory_allocated() / 2**30)
    else:
        # In KiB on Linux.
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", default="ViT-B-16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--compare", metavar="DATA", help="time `taillift compare` of these photos")
    parser.add_argument("--recipes", default="zero-shot,head,lift")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: results/training.md, or comparing.md")
    options = parser.parse_args()
    if options.compare:
        title = f"`taillift compare {Path(options.compare).name} --recipes {options.recipes}`:"
        write_result(options.out or RESULTS / "comparing.md", [title, *comparisons(options)])
        return
    title = f"{options.architecture}, batch {options.batch}, {options.precision}, {options.device}:"
    write_result(options.out or RESULTS / "training.md", [title, table(*interleaved(options))])


def interleaved(options: argparse.Namespace) -> tuple[dict[Way, float], dict[Way, float]]:
    """Return each way's fastest step in seconds, and its process's peak memory in GiB."""
    context = get_context("spawn")
    pipes: dict[Way, Any] = {}
    for way in WAYS:
        pipes[way], other_end = context.Pipe()
        context.Process(target=measure, args=(other_end, way, options), daemon=True).start()
    best = dict.fromkeys(WAYS, float("inf"))
    # The first round is a warm-up.
    for turn in range(options.rounds + 1):
        for way, pipe in pipes.items():
            pipe.send(True)
            seconds = pipe.recv()
            if turn:
                best[way] = min(best[way], seconds)
    memory = {}
    for way, pipe in pipes.items():
        pipe.send(False)
        memory[way] = pipe.recv()
    return best, memory


def table(seconds: dict[Way, float], memory: dict[Way, float]) -> str:
    """Return the fastest step and the peak memory of each way as a Markdown table."""
    rows = [
        [way, f"{seconds[way]:.2f}", f"{seconds[WAYS[0]] / seconds[way]:.2f}", f"{memory[way]:.1f}"]
        for way in WAYS
    ]
    return markdown(("", "step, s", "AdaptFormer takes of it", "peak memory, GiB"), rows)


@dataclass(frozen=True)
class Comparison:
    """A way to run `taillift compare`: a checkout, its own cache, and what that may keep, `gib`."""

    name: str
    root: Path
    cache: Path
    gib: str = "8"

    def run(self, data: str, recipes: str) -> tuple[float, str]:
        """Return the seconds that it took, and the sha256, in hex, of all trained weights."""
        if self.name != FULL:
            shutil.rmtree(self.cache / "taillift/features", ignore_errors=True)
        own = self.root / ".venv/bin/python"
        python = str(own) if own.exists() else sys.executable
        environment = {"XDG_CACHE_HOME": str(self.cache), "TAILLIFT_CACHE_GIB": self.gib}
        with TemporaryDirectory() as out:
            command = [python, "-m", "taillift", "compare", data, "--recipes", recipes]
            start = time.perf_counter()
            subprocess.run(
                [*command, "--out", out],
                cwd=self.root,
                env={**os.environ, **environment},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            seconds = time.perf_counter() - start
            digest = hashlib.sha256()
            for path in sorted(Path(out).glob("*.safetensors")):
                for name, tensor in sorted(load_file(path).items()):
                    digest.update(f"{path.name} {name}".encode() + tensor.tobytes())
        return seconds, digest.hexdigest()


def comparisons(options: argparse.Namespace) -> list[str]:
    """Return a table of how long each way took, and a line on the weights."""
    photos = Path(options.compare)
    data = str(photos.resolve()) if photos.exists() else options.compare
    with TemporaryDirectory() as folder:
        ways = [
            Comparison("without a cache", ROOT, Path(folder) / "none", "0"),
            Comparison("with an empty cache", ROOT, Path(folder) / "empty"),
            Comparison(FULL, ROOT, Path(folder) / "full"),
        ]
        if options.against:
            other = options.against.resolve()
            ways.append(Comparison("the other checkout", other, Path(folder) / "other"))
        # This fills the cache, and is not counted.
        _, expected = ways[2].run(data, options.recipes)
        seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
        same = True
        for _ in range(options.rounds):
            for others in sorted({0, options.busy}):
                for way in ways:
                    with busy(others):
                        took, weights = way.run(data, options.recipes)
                    seconds[way.name, others].append(took)
                    same &= weights == expected or way.root != ROOT
    base = median(seconds[ways[-1].name if options.against else ways[0].name, 0])
    rows = [
        [
            name + (f", next to {others} busy processes" if others else ""),
            f"{median(found):.0f}",
            f"{median(found) / base:.2f}",
            " ".join(f"{one:.0f}" for one in found),
        ]
        for (name, others), found in seconds.items()
    ]
    against = "the other checkout" if options.against else "no cache"
    titles = "", "median, s", f"of {against}, alone", "each round, s"
    equality = "the same to the bit" if same else "NOT the same"
    return [markdown(titles, rows), f"The weights of this checkout's runs were {equality}."]


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many processes computing during the block."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
