"""The reliability diagram."""

from pathlib import Path

import numpy as np
from PIL import Image

from taillift.models.bundle.ensemble import Ensemble
from taillift.training.calibration.held_out import predictions_on
from taillift.training.report.reliability_diagram import draw_reliability
from tests.support.simulated import held_out


def test_the_diagram_takes_any_number_of_photos(tmp_path: Path) -> None:
    ensembles = [predictions_on(held)[0] for held in (held_out(700), held_out(0))]
    scored = [
        (predictions.uncalibrated(), predictions.at(np.full(len(predictions), 2.0)))
        for predictions in ensembles
    ]
    draw_reliability(tmp_path / "reliability.png", dict(zip(Ensemble, scored, strict=False)))
    with Image.open(tmp_path / "reliability.png") as image:
        colours = image.convert("RGB").getcolors(2**24)
        assert image.height > image.width / 2
        assert colours is not None
        assert len(colours) > 100
