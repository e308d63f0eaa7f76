"""A prior estimated from photos without labels."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from taillift.models.bundle.arrays import Doubles
from taillift.models.errors import UserError
from taillift.service.inference.adapted_prior import adapt_prior
from taillift.service.inference.priors import read_priors
from taillift.service.serve_cli import app
from tests.support.palette import CLASSES, new_photo, palette_manifest

MANIFEST = palette_manifest("v", {})
COUNTS = np.array(MANIFEST.counts, np.float64)
# As often as in training; each class equally often; as often as in training, the rarest first.
MIXES = {"as in training": COUNTS, "balanced": np.ones(7), "reversed": COUNTS[::-1]}


def posteriors(mix: Doubles, photos: int, seed: int, noise: float = 1.0) -> list[Doubles]:
    """Draw photos of a mix and their posteriors, from a model that is right about its doubts."""
    random = np.random.default_rng(seed)
    truth = random.choice(7, photos, p=mix / mix.sum())
    # A normal likelihood around each class's corner of a simplex.
    seen = np.eye(7)[truth] + noise * random.standard_normal((photos, 7)) / 2
    logs = -np.square(seen[:, None] - np.eye(7)).sum(-1) * 2 / noise**2
    weights = np.exp(logs - logs.max(1, keepdims=True))
    return list(weights / weights.sum(1, keepdims=True))


def shares_of(mix: Doubles) -> Doubles:
    groups = [info.group for info in MANIFEST.classes]
    return np.array(
        [
            mix[[one == group for one in groups]].sum() / mix.sum()
            for group in ("many", "medium", "few")
        ]
    )


@pytest.mark.parametrize("mix", ["as in training", "reversed"])
def test_the_groups_shares_are_found_and_sure(mix: str) -> None:
    adapted = adapt_prior(posteriors(MIXES[mix], 500, 1), MANIFEST)
    np.testing.assert_allclose(adapted.groups, shares_of(MIXES[mix]), atol=0.08)
    assert (adapted.low <= adapted.groups).all()
    assert (adapted.groups <= adapted.high).all()
    assert adapted.is_sure
    assert adapted.shares.sum() == pytest.approx(1)


def test_the_intervals_hold_the_true_shares() -> None:
    # Within a group, classes are equally frequent as the method assumes.
    mix, held = np.array([2, 2, 2, 1, 1, 3, 3.0]), 0
    truth = shares_of(mix)
    for seed in range(20):
        adapted = adapt_prior(posteriors(mix, 200, seed), MANIFEST)
        held += int(((adapted.low <= truth) & (truth <= adapted.high)).sum())
    assert held >= 0.88 * 60


def test_a_balanced_folder_is_not_sure_in_19_of_20_draws() -> None:
    draws = [adapt_prior(posteriors(np.ones(7), 100, seed), MANIFEST) for seed in range(60)]
    assert sum(one.is_sure for one in draws) <= 3


def test_classes_are_estimated_if_asked_for() -> None:
    adapted = adapt_prior(posteriors(COUNTS, 2_000, 3, noise=0.5), MANIFEST, per_class=True)
    np.testing.assert_allclose(adapted.shares, COUNTS / COUNTS.sum(), atol=0.03)


@pytest.mark.parametrize(("photos", "per_class"), [(19, False), (139, True)])
def test_too_few_photos_are_refused(photos: int, per_class: bool) -> None:
    with pytest.raises(UserError, match=r"too few: give at least (20|140)"):
        adapt_prior(posteriors(COUNTS, photos, 0), MANIFEST, per_class)


def write(folder: Path, colours: list[str]) -> Path:
    folder.mkdir()
    for number, label in enumerate(colours):
        (folder / f"{number:03}.png").write_bytes(new_photo(CLASSES[label][0]))
    return folder


def test_the_file_is_one_that_the_service_reads(bundle: Path, tmp_path: Path) -> None:
    photos, out = write(tmp_path / "photos", ["red"] * 50 + ["black"] * 2), tmp_path / "p.json"
    (photos / "bad.png").write_bytes(b"text")
    command = ["adapt-prior", str(bundle), str(photos), "--out", str(out), "--name", "shop"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "many: 9" in done.stdout
    prior = np.exp(read_priors(out, MANIFEST)["shop"])
    assert prior[:3].sum() > 0.9
    assert set(json.loads(out.read_text())["shop"]) == set(CLASSES)
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, UserError)


def test_a_gain_that_may_be_chance_is_not_written(bundle: Path, tmp_path: Path) -> None:
    photos, out = write(tmp_path / "photos", list(CLASSES) * 6), tmp_path / "p.json"
    done = CliRunner().invoke(app, ["adapt-prior", str(bundle), str(photos), "--out", str(out)])
    assert done.exit_code == 1
    assert "may be chance" in done.output
    assert not out.exists()
    taken = CliRunner().invoke(
        app, ["adapt-prior", str(bundle), str(photos), "--out", str(out), "--name", "train"]
    )
    assert isinstance(taken.exception, UserError)
