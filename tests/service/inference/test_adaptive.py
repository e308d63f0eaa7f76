"""Tests of adaptive ensembling through HTTP."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from taillift.models.bundle.manifest import Variant
from taillift.models.bundle.schema import Precision
from tests.support.palette import CLASSES, photo, write_bundle
from tests.support.serving import form, running, sample, top_labels

ADAPTIVE = {"ensemble": "adaptive"}
# Near the middle between two classes: the margin is smaller than the rule asks for.
UNSURE = {"red": (140, 0, 0), "green": (0, 140, 0), "cyan": (0, 140, 255)}


def views(response: httpx.Response) -> list[int]:
    return [result["views"] for result in response.json()["results"]]


def test_sure_images_take_one_view_and_the_others_all(client: httpx.Client) -> None:
    sure, unsure = photo(CLASSES["red"][0]), photo(UNSURE["green"])
    before = sample(client, "taillift_views_used_sum", ensemble="adaptive")
    response = client.post("/classify", params=ADAPTIVE, files=form(("a", sure), ("b", unsure)))
    assert top_labels(response) == ["red", "green"]
    assert views(response) == [1, 5]
    assert response.json()["ensemble"] == "adaptive"
    assert sample(client, "taillift_views_used_sum", ensemble="adaptive") == before + 6


def test_an_unsure_image_is_answered_as_with_all_views(client: httpx.Client) -> None:
    photos = form(("a", photo(UNSURE["cyan"])))
    sparing, full = (
        client.post("/confidence", params={"ensemble": name}, files=photos).json()["results"][0]
        for name in ("adaptive", "full")
    )
    adaptive, all_views = (
        [row["confidence"] for row in result["classes"]] for result in (sparing, full)
    )
    np.testing.assert_allclose(adaptive, all_views, rtol=1e-6)


def test_answers_belong_to_their_images_when_passes_mix(client: httpx.Client) -> None:
    choose = random.Random(0)
    requests = [
        choose.choices([*CLASSES, *UNSURE.values()], k=choose.randint(1, 6)) for _ in range(40)
    ]
    names = {colour: label for label, colour in UNSURE.items()}

    def ask(wanted: list[str | tuple[int, int, int]]) -> None:
        colours = [CLASSES[colour][0] if isinstance(colour, str) else colour for colour in wanted]
        files = form(*[(str(index), photo(colour)) for index, colour in enumerate(colours)])
        response = client.post("/classify", params=ADAPTIVE, files=files)
        assert top_labels(response) == [
            colour if isinstance(colour, str) else names[colour] for colour in wanted
        ]
        assert views(response) == [1 if isinstance(colour, str) else 5 for colour in wanted]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, requests))
    assert sample(client, "taillift_pass_views_total", **{"pass": "second"}) % 4 == 0


def test_without_a_rule_adaptive_is_refused_and_not_replaced(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "plain", variants={Precision.FP32: Variant()})
    with running(bundle) as client:
        response = client.post("/classify", params=ADAPTIVE, content=photo((255, 0, 0)))
        assert response.status_code == 400
        assert "no rule for ensemble=adaptive" in response.json()["detail"]
