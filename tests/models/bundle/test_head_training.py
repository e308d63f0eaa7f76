"""Training of the head in numpy, against torch and in the smallest cases."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from taillift.models.bundle import head_training as module
from taillift.models.bundle.arrays import Floats, Labels
from taillift.models.bundle.feature_statistics import FeatureStatistics, unit
from taillift.models.bundle.head_training import (
    batches,
    extended_head,
    new_rows,
    prototypes,
    rate_factor,
    train_head,
)
from taillift.training.recipe import head_init


def blobs(seed: int, counts: list[int], spread: float = 0.5) -> tuple[Floats, Labels]:
    """Return unit features around a random direction for each class."""
    width = 12
    centres = np.random.default_rng(0).standard_normal((len(counts), width))
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = np.random.default_rng(seed).standard_normal((len(labels), width))
    return unit((centres[labels] + spread * noise).astype(np.float32)), labels


def test_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AVERAGE", 0.0)
    monkeypatch.setattr(module, "STEPS", 30)
    features, labels = blobs(1, [20, 9, 3])
    statistics = FeatureStatistics.of(features, labels, 3)
    start = np.random.default_rng(5).standard_normal((3, 12)).astype(np.float32)
    rows = train_head(start, 16, features, labels, statistics, np.zeros(3, np.int64), 7)

    weight = F.normalize(torch.from_numpy(start)).requires_grad_()
    anchor = weight.detach().clone()
    optimiser = torch.optim.AdamW([weight], weight_decay=0)
    prior = torch.tensor([20.0, 9, 3]).log() - np.log(32)
    for step, batch in enumerate(batches(32, np.random.default_rng(7))):
        optimiser.param_groups[0]["lr"] = rate = module.RATE * rate_factor(step)
        logits = 16 * torch.from_numpy(features[batch]) @ F.normalize(weight).T + prior
        optimiser.zero_grad()
        F.cross_entropy(logits, torch.from_numpy(labels[batch])).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            weight.lerp_(anchor, rate * module.ANCHOR)
        optimiser.step()
    assert np.allclose(rows, F.normalize(weight).detach().numpy(), atol=1e-4)


def test_new_rows_are_made_like_the_old_ones() -> None:
    random = np.random.default_rng(4)
    common = np.zeros(20, np.float32)
    common[0] = 5
    directions = random.standard_normal((7, 20)).astype(np.float32)
    directions[:, 0] = 0
    means = common + directions
    old, new = means[:6], means[6:]

    # Rows that hold the whole means, and rows that hold only what tells the classes apart.
    whole = new_rows(unit(old), old, new)
    assert (whole * unit(new)).sum() > 0.95
    apart = new_rows(unit(old - old.mean(0)), old, new)
    assert abs(apart[0, 0]) < 0.01
    assert (apart * unit(new - old.mean(0))).sum() > 0.97
    assert np.isfinite(new_rows(unit(old[:1]), old[:1], old[:1])).all()


def test_rows_from_means_and_texts_are_those_that_a_training_starts_from() -> None:
    random = np.random.default_rng(3)
    means, texts = random.standard_normal((2, 5, 8)).astype(np.float32)
    labels = torch.arange(5)
    expected = head_init.prototypes(
        torch.from_numpy(texts), torch.from_numpy(unit(means)), labels, list("abcde"), 0.5
    )
    assert np.allclose(prototypes(unit(means), texts), expected.numpy(), atol=1e-6)


def test_texts_start_new_rows_alone_and_help_a_class_of_one_photo() -> None:
    features, labels = blobs(1, [60, 40, 20, 1], 1.5)
    old = labels < 3
    known = FeatureStatistics.of(features[old], labels[old], 3)
    start, nothing = known.means, np.zeros(3, np.int64)
    rows = train_head(start, 16, features[old], labels[old], known, nothing, 0)
    test, truth = blobs(2, [200] * 4, 1.5)
    texts = blobs(3, [1] * 4, 0.0)[0]

    def hits(texts: Floats | None) -> list[float]:
        last, new = (features[~old], labels[~old]), [0, 1, 2, None]
        trained, joined = extended_head(rows, 16, known, new, *last, 0, texts)
        assert joined.counts.tolist() == [60, 40, 20, 1]
        right = (test @ trained.T).argmax(1) == truth
        return [float(right[truth == one].mean()) for one in range(4)]

    with_text, without = hits(texts), hits(None)
    assert with_text[3] > without[3] + 0.05
    assert sum(with_text) > sum(without) - 0.05


def test_an_allowance_takes_room_from_a_class() -> None:
    features, labels = blobs(1, [40, 40], 2.0)
    statistics = FeatureStatistics.of(features, labels, 2)
    start, nothing = statistics.means, np.zeros(2, np.int64)
    test, _ = blobs(2, [200, 200], 2.0)

    def share(allowance: float) -> float:
        extra = np.array([0, allowance])
        rows = train_head(start, 16, features, labels, statistics, nothing, 0, extra)
        return float(((test @ rows.T).argmax(1) == 1).mean())

    assert share(3) + 0.03 < share(0) < share(-3) - 0.03


def test_draws_stand_for_the_photos_of_a_class() -> None:
    counts = [80, 60, 40, 12]
    features, labels = blobs(1, counts)
    test, truth = blobs(2, [50] * 4)
    statistics = FeatureStatistics.of(features, labels, 4)
    new = labels == 3
    start = np.random.default_rng(9).standard_normal((4, 12)).astype(np.float32)

    def right(draws: int) -> list[float]:
        drawn = np.array([draws, draws, draws, 0])
        rows = train_head(start, 16, features[new], labels[new], statistics, drawn, 0)
        hits = (test @ rows.T).argmax(1) == truth
        return [float(hits[truth == one].mean()) for one in range(4)]

    assert min(right(64)) > 0.7
    assert max(right(0)[:3]) < 0.3, "without them the old classes are not learned"


def test_two_classes_of_one_photo_are_told_apart_without_nan() -> None:
    features = np.eye(2, 5, dtype=np.float32)
    labels = np.arange(2)
    statistics = FeatureStatistics.of(features, labels, 2)
    start = np.zeros((2, 5), np.float32)
    rows = train_head(start, 16, features, labels, statistics, np.array([64, 0]), 0)
    assert np.isfinite(rows).all()
    assert (features @ rows.T).argmax(1).tolist() == [0, 1]


def test_the_seed_gives_the_bytes_and_every_item_is_shown() -> None:
    features, labels = blobs(3, [9, 4])
    statistics = FeatureStatistics.of(features, labels, 2)
    drawn = np.array([64, 0])

    def trained(seed: int) -> bytes:
        start = statistics.means
        return train_head(start, 16, features, labels, statistics, drawn, seed).tobytes()

    assert trained(0) == trained(0) != trained(1)
    shown = np.concatenate(list(batches(20_000, np.random.default_rng(0))))
    assert set(shown.tolist()) == set(range(20_000))
