"""Answers to valid requests."""

from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path
from threading import Event
from typing import Any
from weakref import ref

import httpx
import numpy as np
import pytest

from taillift.models import errors
from taillift.service.http import app, schemas
from taillift.service.http.schemas import (
    Confidence,
    ConfidenceOfImage,
    FailedImage,
    confidences,
    unknown_class,
)
from tests.support.palette import CLASSES, TEMPERATURE, logits_of, photo
from tests.support.serving import form, running

RED = CLASSES["red"][0]
STATUSES = {"200", "400", "403", "404", "408", "413", "415", "421", "422", "429", "500", "503"}
COUNTS = np.array([count for _, count in CLASSES.values()], float)


def expected(colour: tuple[int, int, int], temperature: float, prior: np.ndarray) -> np.ndarray:
    """Return the probabilities [C] by definition: softmax(logits / T + log prior)."""
    weights = prior * np.exp(logits_of([colour])[0].astype(float) / temperature)
    probabilities: np.ndarray = weights / weights.sum()
    return probabilities


@pytest.mark.parametrize(
    ("ensemble", "views", "temperature"), [("full", 5, TEMPERATURE), ("off", 1, 1.0)]
)
@pytest.mark.parametrize(("prior", "weights"), [("uniform", COUNTS * 0 + 1), ("train", COUNTS)])
def test_classify_answers_confidence_under_the_prior_at_the_bundles_temperature(
    client: httpx.Client,
    ensemble: str,
    views: int,
    temperature: float,
    prior: str,
    weights: np.ndarray,
) -> None:
    grey = (120, 110, 100)
    query = {"ensemble": ensemble, "prior": prior, "top_k": "7"}
    answer = client.post("/classify", params=query, content=photo(grey)).json()
    assert (answer["ensemble"], answer["prior"]) == (ensemble, prior)
    assert answer["model"]["name"] == "palette"
    (result,) = answer["results"]
    assert (result["filename"], result["views"]) == (None, views)
    probabilities = expected(grey, temperature, weights)
    order = np.argsort(-probabilities)
    assert [prediction["label"] for prediction in result["predictions"]] == [
        list(CLASSES)[i] for i in order
    ]
    confidences = [prediction["confidence"] for prediction in result["predictions"]]
    np.testing.assert_allclose(confidences, probabilities[order], rtol=1e-4)


def test_a_prediction_has_group_and_training_count(client: httpx.Client) -> None:
    result = client.post("/classify", content=photo((0, 0, 0))).json()["results"][0]
    best = result["predictions"][0]
    assert (best["label"], best["group"], best["count"]) == ("black", "few", 5)


def test_classify_names_five_classes_by_default(client: httpx.Client) -> None:
    def predictions(**query: int) -> int:
        answer = client.post("/classify", params=query, content=photo(RED)).json()
        return len(answer["results"][0]["predictions"])

    assert predictions() == 5
    assert predictions(top_k=1) == 1
    assert predictions(top_k=100) == len(CLASSES)


def test_confidence_covers_every_class_and_group(client: httpx.Client) -> None:
    result = client.post("/confidence", content=photo(RED)).json()["results"][0]
    assert [entry["label"] for entry in result["classes"]] == list(CLASSES)
    assert sum(entry["confidence"] for entry in result["classes"]) == pytest.approx(1)
    assert sum(result["groups"].values()) == pytest.approx(1)
    few = sum(entry["confidence"] for entry in result["classes"] if entry["group"] == "few")
    assert result["groups"]["few"] == pytest.approx(few)


def test_confidence_of_some_classes_is_the_same_as_among_all(client: httpx.Client) -> None:
    everything = client.post("/confidence", content=photo(RED)).json()["results"][0]
    query = {"classes": ["cyan", "red"]}
    some = client.post("/confidence", params=query, content=photo(RED)).json()["results"][0]
    by_label = {entry["label"]: entry for entry in everything["classes"]}
    assert some["classes"] == [by_label["cyan"], by_label["red"]]
    assert some["groups"] == everything["groups"]


def test_confidence_takes_several_images_and_fails_one_by_one(client: httpx.Client) -> None:
    files = form(("a.png", photo(RED)), ("b.png", b"text"))
    good, bad = client.post("/confidence", files=files).json()["results"]
    assert good["filename"] == "a.png"
    assert bad["error"]["status"] == 415


def test_confidence_is_written_as_its_description_says(client: httpx.Client) -> None:
    files = form(('é"}.png', photo(RED)), ("b.png", b"text"), ("c.png", photo(RED)))
    answer = client.post("/confidence", params={"prior": "train"}, files=files)
    assert answer.headers["content-type"] == "application/json"
    described = Confidence.model_validate_json(answer.content)
    kinds = [type(result) for result in described.results]
    assert kinds == [ConfidenceOfImage, FailedImage, ConfidenceOfImage]
    assert answer.text == described.model_dump_json()


def test_confidence_of_many_images_is_never_in_memory_together(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ref[ConfidenceOfImage]] = []
    together = []

    def counted(*arguments: Any) -> ConfidenceOfImage:
        together.append(sum(reference() is not None for reference in made))
        result = confidences(*arguments)
        made.append(ref(result))
        return result

    monkeypatch.setattr(app, "confidences", counted)
    files = form(*[("a.png", photo(RED))] * 8)
    with running(bundle) as client, ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda _: client.post("/confidence", files=files), range(4))
        assert [answer.status_code for answer in answers] == [200] * 4
    assert len(together) == 32
    assert max(together) <= 1


def test_a_request_is_in_progress_until_its_answer_is_written(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, written = Event(), Event()

    def slow(*arguments: Any) -> ConfidenceOfImage:
        writing.set()
        written.wait(10)
        return confidences(*arguments)

    monkeypatch.setattr(app, "confidences", slow)
    body = photo(RED) + bytes(60_000)
    limits = {"max_images": 1, "max_body_bytes": 100_000, "queue_bytes": 110_000}
    with running(bundle, **limits) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/confidence", content=body)
        assert writing.wait(10)
        assert client.post("/confidence", content=body).status_code == 429
        written.set()
        assert first.result().status_code == 200
        assert client.post("/confidence", content=body).status_code == 200


def test_the_nearest_of_many_labels_is_one_that_begins_alike() -> None:
    words = [f"{chr(97 + number % 26)}{number} thing" for number in range(9_000)]
    labels = [*words, "great grey owl", "snowy owl"]
    assert unknown_class("Great gray owl", labels).endswith("did you mean `great grey owl`?")
    assert unknown_class("snowy ovl", labels).endswith("did you mean `snowy owl`?")
    assert unknown_class("xnowy owl", labels).endswith("`xnowy owl`: GET /classes lists them")
    assert unknown_class("xnowy owl", labels[-99:]).endswith("did you mean `snowy owl`?")


@pytest.mark.parametrize("label", ["label", "label " * 1_000, "l" * 30_000, "other"])
def test_few_labels_are_compared_with_an_unknown_one(
    label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def counting(word: str, labels: list[str], n: int) -> list[str]:
        compared.append(len(labels))
        return get_close_matches(word, labels, n)

    monkeypatch.setattr(errors, "get_close_matches", counting)
    for count in (10, 1_000, 20_000):
        unknown_class(label, [f"label {number}" for number in range(count)])
    assert max(compared) <= 100


def test_classes_are_listed_in_order(client: httpx.Client) -> None:
    answer = client.get("/classes").json()
    assert [entry["label"] for entry in answer["classes"]] == list(CLASSES)
    assert answer["classes"][0].pop("live")
    assert answer["classes"][0].pop("labelled")["labels"] == 0
    assert answer["classes"][0] == {
        "label": "red",
        "group": "many",
        "count": 300,
        "accuracy": {"single": 90.0, "full": 100.0},
    }


def test_the_model_summary_says_what_runs_it(client: httpx.Client) -> None:
    answer = client.get("/model").json()
    assert (answer["name"], answer["provider"], answer["precision"]) == ("palette", "cpu", "fp32")
    assert answer["groups"] == {"many": 3, "medium": 2, "few": 2}
    assert answer["calibrated"] is True
    assert answer["notes"] == []


def test_the_documentation_needs_no_other_host(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert "https://" not in page.text
    assert client.get("/swagger/swagger-ui-bundle.js").status_code == 200


def test_openapi_documents_every_status(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/classify", "/confidence"):
        operation = paths[path]["post"]
        assert set(operation["responses"]) == STATUSES
        assert "application/problem+json" in operation["responses"]["429"]["content"]
        assert "multipart/form-data" in operation["requestBody"]["content"]
    assert set(paths["/readyz"]["get"]["responses"]) == {"200", "503"}


def test_numbers_of_answers_have_six_digits_in_json_alone() -> None:
    answer = schemas.ClassConfidence(label="hat", group="few", confidence=1 / 3)
    assert answer.confidence == 1 / 3
    assert answer.model_dump_json() == '{"label":"hat","group":"few","confidence":0.333333}'
    tiny = answer.model_copy(update={"confidence": 1.23456789e-12})
    assert '"confidence":1.23457e-12' in tiny.model_dump_json().replace("E", "e")
