"""An int8 graph for CPUs: several ways tried, the quickest that stays near fp32 kept."""

import shutil
import tempfile
import time
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from models import UserError
from models.bundle.device import Device
from models.bundle.images import Pixels
from models.bundle.session import Session, first_line
from training.variants.fidelity import Fidelity, fidelity, logits_of
from training.variants.forms import FORMS, Form, calibrate, write_int8
from training.variants.graph import folded, products
from training.variants.sensitivity import groups

# Of the logits' spread. Two views of a photo differ by four to five times as much (wardrobe-lt).
LIMIT: Final = 0.1
VIEWS: Final = 128
SENSITIVITY_VIEWS: Final = 16
TIMED_VIEWS: Final = 8
ROUNDS: Final = 3
ONE_THREAD: Final = Device(threads=1)


@dataclass(frozen=True)
class Candidate:
    """`seconds` of processor time a view takes; `in_float` names the products left in float."""

    form: Form
    in_float: tuple[str, ...]
    seconds: float
    fidelity: Fidelity

    def __str__(self) -> str:
        left = f", {len(self.in_float)} products left in float" if self.in_float else ""
        batch = (
            ""
            if self.form == "static"
            else "; activations are scaled by each batch, so that what "
            "is beside a view moves its logits a little"
        )
        return f"{self.form}{left}; {self.fidelity}{batch}"


@dataclass(frozen=True)
class Quantised:
    kept: Candidate
    tried: tuple[Candidate, ...]


def quantise(graph: Path, target: Path, pixels: Pixels) -> Quantised:
    """Write the int8 variant of the fp32 `graph` to `target`.

    `pixels` uint8 [N, S, S, 3] are training views, of which at most `VIEWS` are used: every other
    one calibrates, and the rest are what variant and fp32 are compared on. The head, and attention
    between its projections, stay in float. Raises `UserError` where the graph cannot be quantised.
    """
    if len(pixels) < 2:
        raise UserError("an int8 variant needs two training views or more: add photos")
    spread = np.linspace(0, len(pixels) - 1, min(VIEWS, len(pixels)), dtype=int)
    with tempfile.TemporaryDirectory() as folder:
        try:
            trial = _Trial(graph, pixels[spread], Path(folder))
            tried = trial.run()
        except UserError:
            raise
        except Exception as error:  # The quantiser's errors have no common base.
            raise UserError(
                f"{graph} cannot be quantised ({first_line(error)}): leave int8 out"
            ) from error
        kept = best(tried)
        shutil.copyfile(trial.path(kept.form, kept.in_float), target)
    return Quantised(kept, tuple(tried))


def quantise_like(graph: Path, target: Path, pixels: Pixels, kept: Candidate) -> None:
    """Write the int8 variant of another `graph` of the same shape the way that was `kept`.

    `pixels` uint8 [N, S, S, 3] are training views to calibrate on.
    """
    model = folded(graph)
    with tempfile.TemporaryDirectory() as folder:
        ranges = calibrate(model, pixels[:: max(1, 2 * len(pixels) // VIEWS)], Path(folder))
    nodes = {node.name for node in products(model)} - set(kept.in_float)
    write_int8(kept.form, model, ranges, nodes, target)


def best(candidates: Sequence[Candidate]) -> Candidate:
    """The quickest whose error is within `LIMIT`; where there is none, the one nearest to fp32."""
    near = [one for one in candidates if one.fidelity.error <= LIMIT]
    if near:
        return min(near, key=lambda one: one.seconds)
    return min(candidates, key=lambda one: one.fidelity.error)


class _Trial:
    def __init__(self, graph: Path, pixels: Pixels, folder: Path) -> None:
        self.folder = folder
        self.model = folded(graph)
        self.nodes = [node.name for node in products(self.model)]
        if not self.nodes:
            raise UserError(
                f"{graph} cannot be quantised (it has no convolution or matrix product with "
                "constant weights before its head): leave int8 out"
            )
        self.ranges = calibrate(self.model, pixels[::2], folder)
        self.pixels = pixels[1::2]
        self.expected = logits_of(Session(graph, ONE_THREAD), self.pixels)

    def run(self) -> list[Candidate]:
        tried = [self._candidate(form, ()) for form in FORMS]
        quickest = min(tried, key=lambda one: one.seconds)
        if quickest.fidelity.error > LIMIT:
            tried += self._refined(quickest)
        return tried

    def path(self, form: Form, in_float: Collection[str]) -> Path:
        return self.folder / f"{form}-{len(in_float)}.onnx"

    def _refined(self, whole: Candidate) -> list[Candidate]:
        """With the fewest groups in float, the most sensitive first, that bring the error into the
        limit: found by bisection, as it falls with every group."""
        parts = groups(self.model.graph.node, set(self.nodes))
        alone = [self._alone(whole.form, part) for part in parts]
        worst = sorted(range(len(parts)), key=lambda one: -alone[one])
        tried: list[Candidate] = []

        def near(count: int) -> bool:
            left = sorted(worst[:count])
            in_float = tuple(name for part in left for name in parts[part])
            tried.append(self._candidate(whole.form, in_float))
            return tried[-1].fidelity.error <= LIMIT

        bisect_left(range(1, len(parts)), True, key=near)
        return tried

    def _alone(self, form: Form, part: Sequence[str]) -> float:
        """The error with nothing but `part` in integers."""
        path = self.folder / "alone.onnx"
        write_int8(form, self.model, self.ranges, part, path)
        found = logits_of(Session(path, ONE_THREAD), self.pixels[:SENSITIVITY_VIEWS])
        return fidelity(found, self.expected[:SENSITIVITY_VIEWS]).error

    def _candidate(self, form: Form, in_float: tuple[str, ...]) -> Candidate:
        path = self.path(form, in_float)
        nodes = set(self.nodes) - set(in_float)
        write_int8(form, self.model, self.ranges, nodes, path)
        session = Session(path, ONE_THREAD)
        found = logits_of(session, self.pixels)
        return Candidate(form, in_float, self._seconds(session), fidelity(found, self.expected))

    def _seconds(self, session: Session) -> float:
        """Of this thread, on which all of it runs, whatever else the machine does."""
        rows = self.pixels[:TIMED_VIEWS]
        taken = []
        for _ in range(ROUNDS):
            start = time.thread_time()
            session.run(rows)
            taken.append(time.thread_time() - start)
        return min(taken) / len(rows)
