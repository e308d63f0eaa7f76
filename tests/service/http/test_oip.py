"""The Open Inference Protocol: tritonclient gets the answers of POST /classify, and refusals."""

import asyncio
import base64
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from PIL import Image
from tritonclient.utils import InferenceServerException

from taillift.models.bundle.version_store import VersionStore
from taillift.service.inference.engine import Engine
from taillift.service.settings import read_settings
from tests.support.palette import CLASSES, POISON, new_photo, photo, write_bundle
from tests.support.raw import exchange
from tests.support.serving import form, running, sample, serving, top_labels, until

RED, BLUE = photo(CLASSES["red"][0]), photo(CLASSES["blue"][0], "JPEG")
INFER = "/v2/models/palette/infer"
ONE_PHOTO = {"Inference-Header-Content-Length": "0"}
ADMIN_KEY = "an-admin-key-of-the-tests"


@pytest.fixture(scope="module")
def service(bundle: Path) -> Iterator[httpx.Client]:
    with running(bundle, max_images=16, max_body_bytes=2**20) as client:
        yield client


@pytest.fixture
def client(service: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address(service)) as client:
        yield client


def address(service: httpx.Client) -> str:
    return f"{service.base_url.host}:{service.base_url.port}"


def photos(count: int) -> list[bytes]:
    """Return photos of any colour, most of which need more than one view."""
    colours = np.random.default_rng(7).integers(0, 256, (count, 3)).tolist()
    return [new_photo(tuple(colour)) for colour in colours]


def tensor(images: Sequence[bytes], *, column: bool = False) -> triton.InferInput:
    array = np.array(images, np.object_)
    array = array[:, None] if column else array
    tensor = triton.InferInput("image", list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array)
    return tensor


def pixels(array: np.ndarray[Any, Any], binary: bool) -> triton.InferInput:
    tensor = triton.InferInput("image", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def png(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def wanted(*names: str, binary: bool = True) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def said(result: triton.InferResult) -> list[tuple[list[str], list[float], int]]:
    """Return the labels, the confidences and the views of each image."""
    labels, confidences = result.as_numpy("label"), result.as_numpy("confidence")
    rows = zip(labels.tolist(), confidences.tolist(), result.as_numpy("views"), strict=True)
    return [([label_text(one) for one in names], numbers, views) for names, numbers, views in rows]


def label_text(label: str | bytes) -> str:
    return label.decode() if isinstance(label, bytes) else label


def classified(answer: httpx.Response) -> list[tuple[list[str], Any, int]]:
    return [
        (
            [one["label"] for one in result["predictions"]],
            pytest.approx([one["confidence"] for one in result["predictions"]], rel=1e-5),
            result["views"],
        )
        for result in answer.json()["results"]
    ]


def document(**changes: object) -> dict[str, Any]:
    data = [base64.b64encode(RED).decode()]
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": data}
    return {"inputs": [image | changes]}


def test_tritonclient_is_told_what_is_served(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("palette", "1")
    assert client.get_server_metadata()["extensions"][0] == "binary_tensor_data"
    metadata = client.get_model_metadata("palette")
    assert (metadata["name"], metadata["versions"]) == ("palette", ["1"])
    shapes = {output["name"]: output["shape"] for output in metadata["outputs"]}
    assert (shapes["label"], shapes["probabilities"], shapes["views"]) == ([-1, -1], [-1, 7], [-1])
    config = client.get_model_config("palette")
    assert (config["max_batch_size"], config["input"][0]["data_type"]) == (16, "TYPE_STRING")
    row = {"name": "palette", "version": "1", "state": "READY", "reason": ""}
    assert client.get_model_repository_index() == [row]


def test_tritonclient_gets_the_answers_of_classify_on_fifty_photos(
    service: httpx.Client, client: triton.InferenceServerClient
) -> None:
    views = set()
    for image in photos(50):
        expected = classified(service.post("/classify", content=image))
        assert said(client.infer("palette", [tensor([image])])) == expected
        views.add(expected[0][2])
    assert views == {1, 5}


def test_the_asynchronous_client_gets_them_for_requests_at_the_same_time(
    service: httpx.Client,
) -> None:
    images = photos(8)

    async def ask_all() -> list[triton.InferResult]:
        async with triton_aio.InferenceServerClient(address(service)) as client:
            return await asyncio.gather(
                *(client.infer("palette", [tensor([image])]) for image in images)
            )

    for image, result in zip(images, asyncio.run(ask_all()), strict=True):
        assert said(result) == classified(service.post("/classify", content=image))


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("binary", [False, True])
def test_a_batch_of_photos_is_answered_like_a_form(
    service: httpx.Client, client: triton.InferenceServerClient, column: bool, binary: bool
) -> None:
    images = photos(16)
    outputs = wanted("label", "confidence", "views", binary=binary)
    result = client.infer(
        "palette", [tensor(images, column=column)], outputs=outputs, parameters={"top_k": 3}
    )
    uploads = form(*[(str(number), image) for number, image in enumerate(images)])
    assert said(result) == classified(service.post("/classify?top_k=3", files=uploads))


@pytest.mark.parametrize("binary", [False, True])
def test_pixels_are_answered_like_a_png_of_them(
    service: httpx.Client, client: triton.InferenceServerClient, binary: bool
) -> None:
    array = np.random.default_rng(1).integers(0, 256, (4, 21, 34, 3), np.uint8)
    array[:, :12] = array[:, :1, :1]  # Views of four different colours.
    result = client.infer("palette", [pixels(array, binary)])
    uploads = form(*[(str(number), png(image)) for number, image in enumerate(array)])
    assert said(result) == classified(service.post("/classify", files=uploads))


def test_base64_in_json_is_read_nested_and_flat_and_answered_in_json(
    service: httpx.Client,
) -> None:
    data = [base64.b64encode(image).decode() for image in (RED, BLUE)]
    for nested, shape in ((data, [2]), ([[one] for one in data], [2, 1]), (data, [2, 1])):
        body = document(shape=shape, data=nested, parameters={"content_type": "base64"})
        # As KServe's SDK and MLServer's types write it.
        nothing = {"parameters": None, "outputs": None, "model_name": "palette"}
        answer = service.post(INFER, json=body | {"id": "mine", **nothing})
        found = answer.json()
        outputs = {output["name"]: output for output in found.pop("outputs")}
        assert found == {"model_name": "palette", "model_version": "1", "id": "mine"}
        assert list(outputs) == ["label", "confidence", "group", "views", "decision"]
        assert outputs["label"]["shape"] == [2, 5]
        assert outputs["label"]["data"][::5] == ["red", "blue"]
        assert outputs["group"]["data"][::5] == ["many", "many"]


def test_a_body_that_is_one_photo_needs_no_document(service: httpx.Client) -> None:
    answer = service.post(INFER, content=RED, headers=ONE_PHOTO)
    assert answer.json()["outputs"][0]["data"][0] == "red"


def test_probabilities_are_those_of_confidence_or_the_best_classes(
    service: httpx.Client, client: triton.InferenceServerClient
) -> None:
    (image,) = photos(1)
    results = service.post("/confidence?ensemble=full&prior=train", content=image).json()["results"]
    expected = {one["label"]: one["confidence"] for one in results[0]["classes"]}
    asked = {"ensemble": "full", "prior": "train"}
    for binary in (False, True):
        outputs = wanted("probabilities", binary=binary)
        result = client.infer("palette", [tensor([image])], outputs=outputs, parameters=asked)
        found = dict(zip(CLASSES, result.as_numpy("probabilities")[0].tolist(), strict=True))
        assert found == pytest.approx(expected, rel=1e-5)
    best = triton.InferRequestedOutput("probabilities", class_count=2)
    result = client.infer("palette", [tensor([image])], outputs=[best], parameters=asked)
    for text in result.as_numpy("probabilities")[0]:
        value, index, label = text.decode().split(":")
        assert list(CLASSES)[int(index)] == label
        assert float(value) == pytest.approx(expected[label], rel=1e-5)
    assert float(result.as_numpy("probabilities")[0][0].split(b":")[0]) == max(expected.values())


BAD = [RED, RED[:40], BLUE]


def test_one_bad_photo_fails_the_request_with_its_number(
    service: httpx.Client, client: triton.InferenceServerClient
) -> None:
    before = predictions(service), rejections(service, "undecodable")
    with pytest.raises(InferenceServerException, match="image 1, counted from 0: the image") as it:
        client.infer("palette", [tensor(BAD)])
    assert it.value.status() == "422"
    assert predictions(service) == before[0]
    assert rejections(service, "undecodable") == before[1] + 1


@pytest.mark.parametrize("binary", [False, True])
def test_with_the_output_error_the_other_photos_are_answered(
    service: httpx.Client, client: triton.InferenceServerClient, binary: bool
) -> None:
    before = predictions(service), rejections(service, "undecodable")
    outputs = wanted("label", "confidence", "views", "probabilities", "error", binary=binary)
    result = client.infer("palette", [tensor(BAD)], outputs=outputs, parameters={"top_k": 1})
    labels, numbers, views = zip(*said(result), strict=True)
    assert labels == (["red"], [""], ["blue"])
    assert np.isnan(numbers).tolist() == [[False], [True], [False]]
    assert views == (1, 0, 1)
    assert np.isnan(result.as_numpy("probabilities")).all(axis=1).tolist() == [False, True, False]
    reasons = list(map(label_text, result.as_numpy("error")))
    assert (reasons[0], reasons[2]) == ("", "")
    assert "the image" in reasons[1]
    assert predictions(service) == before[0] + 2
    assert rejections(service, "undecodable") == before[1] + 1


def test_with_the_output_error_even_no_photo_need_be_good(
    client: triton.InferenceServerClient,
) -> None:
    result = client.infer("palette", [tensor([b"x", b""])], outputs=wanted("label", "error"))
    assert result.as_numpy("label").tolist() == [[b""] * 5] * 2
    assert all(result.as_numpy("error"))


def predictions(service: httpx.Client) -> float:
    return sum(
        sample(service, "taillift_predictions_total", group=group)
        for group in ("many", "medium", "few")
    )


def rejections(service: httpx.Client, reason: str) -> float:
    return sample(service, "taillift_rejections_total", reason=reason)


MANY = document(shape=[17], data=["aaaa"] * 17)
REFUSED: Mapping[str, tuple[object, int, str]] = {
    "no JSON": (RED, 400, "Inference-Header-Content-Length: 0"),
    "nothing": (b"", 400, "the request is empty"),
    "no object": ([], 400, "the document"),
    "nesting": (b"[" * 100_000, 400, "nested too deeply"),
    "not a number": (b'{"inputs": NaN}', 400, "expected value"),
    "digits": (b'{"inputs": %s}' % (b"9" * 5_000), 400, "cannot be read"),
    "members": ({f"a{number}": 0 for number in range(101)}, 400, "more than 100 members"),
    "member": ({"input": []}, 400, 'did you mean "inputs"?'),
    "no input": ({"inputs": []}, 400, "0 tensors"),
    "name": (document(name="images"), 400, "the input is `image`"),
    "datatype": (document(datatype="FP32"), 400, "BYTES (JPEG, PNG or WebP)"),
    "shape": (document(shape=[1, 2, 3]), 400, "[n] or [n,1]"),
    "count": (document(shape=[2]), 400, "the 2 elements"),
    "negative": (document(shape=[-1]), 400, "inputs.0.shape.0"),
    "huge": (document(shape=[16, 10**4_000, 9, 3], datatype="UINT8", data=[1]), 400, "product"),
    "many": (MANY, 400, "more than the 16 images allowed"),
    "base64": (document(data=["//€"]), 400, "element 0 of `data` is not base64"),
    "element": (document(data=[7]), 400, "element 0 of `data` is not base64"),
    "value": (document(shape=[1, 1, 1, 3], datatype="UINT8", data=[1, 2, 256]), 400, "0 to 255"),
    "no data": (document(data=None), 400, "neither `data` nor"),
    "binary": (document(parameters={"binary_data_size": 9}), 400, "0 bytes follow the JSON"),
    "memory": (document(parameters={"shared_memory_region": "a"}), 400, "no shared memory"),
    "output": (document() | {"outputs": [{"name": "labels"}]}, 400, 'did you mean "label"?'),
    "twice": (document() | {"outputs": [{"name": "label"}] * 2}, 400, "twice"),
    "set": (document() | {"outputs": [{"name": "set"}]}, 400, "`coverage`"),
    "parameter": (document() | {"parameters": {"topk": 1}}, 400, 'did you mean "top_k"?'),
    "sequence": (document() | {"parameters": {"sequence_id": 1}}, 400, "no state of sequences"),
    "top_k": (document() | {"parameters": {"top_k": 0}}, 400, "greater than or equal to 1"),
    "true": (document() | {"parameters": {"top_k": True}}, 400, "cannot be true or false"),
    "lean": (document() | {"parameters": {"tail": True}}, 400, "cannot be true or false"),
    "1.0": (document() | {"parameters": {"top_k": 1.0}}, 400, "should be an integer"),
    "prior": (document() | {"parameters": {"prior": "trian"}}, 400, "`train`"),
    "coverage": (document() | {"parameters": {"coverage": 0.9}}, 400, "leave out coverage"),
    "timeout": (document() | {"parameters": {"timeout": 1}}, 408, "no answer within the 1e-06"),
    "never": (document() | {"parameters": {"timeout": -1}}, 400, "number of microseconds"),
    "type": (document(data=["aaaa"]), 415, "image 0, counted from 0: not a JPEG"),
    "poison": (
        document(data=[base64.b64encode(photo(POISON)).decode()]),
        500,
        "image 0, counted from 0: the model failed",
    ),
    "large": (b" " * (2**20 + 1), 413, "more than the 1,048,576 allowed"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_has_its_status_and_says_why(service: httpx.Client, kind: str) -> None:
    body, status, words = REFUSED[kind]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = service.post(INFER, content=content)
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (status, status), problem
    assert words in problem["error"]
    assert problem["error"] == problem["detail"]
    assert problem["type"].startswith("urn:taillift:problem:")
    # KServe's SDK shows the text of no other type.
    assert answer.headers["content-type"] == "application/json"


def test_values_beyond_a_limit_are_refused_before_they_are_parsed(bundle: Path) -> None:
    body = b'{"inputs":[%s0]}' % (b"0," * 2**21)
    with running(bundle) as service:
        answer = service.post(INFER, content=body)
        assert (answer.status_code, answer.json()["type"]) == (
            413,
            "urn:taillift:problem:body-too-large",
        )
        assert "as binary data" in answer.json()["error"]


@pytest.mark.parametrize(
    ("header", "body", "words"),
    [
        ("-1", RED, "is not a number of bytes"),
        ("9" * 5_000, RED, "is not a number of bytes"),
        ("9", b"{}", "is not a number of bytes|fewer than 9"),
        ("2", b"{}1234", "inputs"),
    ],
)
def test_a_wrong_length_of_the_document_is_refused(
    service: httpx.Client, header: str, body: bytes, words: str
) -> None:
    headers = {"Inference-Header-Content-Length": header}
    answer = service.post(INFER, content=body, headers=headers)
    assert answer.status_code == 400
    assert re.search(words, answer.json()["error"])


def test_unknown_models_and_versions_and_encodings_are_refused(service: httpx.Client) -> None:
    for path, words in (
        ("/v2/models/palete/infer", 'did you mean "palette"?'),
        ("/v2/models/palette/versions/2/infer", "no version '2' is loaded"),
        ("/v2/trace/setting", "Not Found"),
    ):
        answer = service.post(path, json=document())
        assert answer.status_code == 404
        assert words in answer.json()["error"]
    encoded = service.post(INFER, json=document(), headers={"Content-Encoding": "gzip"})
    assert (encoded.status_code, "error" in encoded.json()) == (415, True)


@pytest.mark.parametrize("path", ["classify", "model", "v2/models/palette/infer"])
def test_an_address_with_a_line_end_behind_it_does_not_exist(
    service: httpx.Client, path: str
) -> None:
    for answer in (service.post(f"/{path}%0A", content=b"x"), service.get(f"/{path}%0A")):
        assert (answer.status_code, answer.json()["error"]) == (404, "Not Found")


def test_a_foreign_host_is_refused_with_an_error_and_probes_are_not(service: httpx.Client) -> None:
    for path, status in (("/v2", 421), ("/v2/health/ready", 200), ("/v2/health/live", 200)):
        request = f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        (answer,) = exchange(service, request.encode())
        assert answer.status == status
        assert ("error" in json.loads(answer.body)) == (status == 421)


def test_a_key_is_needed_for_all_but_health(bundle: Path) -> None:
    key = {"Authorization": "Bearer a-key-for-the-tests"}
    with running(bundle, keys="a-key-for-the-tests") as service:
        for path in ("/v2", "/v2/models/palette", "/v2/models/stats"):
            assert service.get(path).status_code == 401
            assert service.get(path, headers=key).status_code == 200
        for path in ("/v2/models/palette/versions/9", "/model?version=9", "/classes/a?version=9"):
            assert service.get(path).status_code == 401
            assert service.get(path, headers=key).status_code == 404
        assert service.post(INFER, json=document()).json()["error"].startswith("send an API key")
        assert service.post("/v2/repository/index").status_code == 401
        assert service.post(INFER, json=document(), headers=key).status_code == 200
        assert service.get("/v2/health/ready").status_code == 200


def test_the_model_has_the_name_that_it_is_given_and_its_own(bundle: Path) -> None:
    with running(bundle, model_name="photos") as service:
        for name in ("photos", "palette"):
            answer = service.post(f"/v2/models/{name}/infer", json=document())
            assert answer.json()["model_name"] == "photos"
        assert service.post("/v2/repository/index").json()[0]["name"] == "photos"


def test_statistics_count_requests_images_and_failures(
    bundle: Path,
) -> None:
    with running(bundle) as service:
        service.post(INFER, json=document())
        service.post(INFER, json=document(shape=[2], data=document()["inputs"][0]["data"] * 2))
        service.post(INFER, json=document(shape=[3]))
        for path in ("/v2/models/stats", "/v2/models/palette/versions/1/stats"):
            (row,) = service.get(path).json()["model_stats"]
            assert (row["name"], row["version"], row["inference_count"]) == ("palette", "1", 3)
            counted = row["inference_stats"]
            assert (counted["success"]["count"], counted["fail"]["count"]) == (2, 1)
            assert counted["compute_infer"]["ns"] > 0
            assert row["last_inference"] > 1e12


def test_a_label_can_be_sent_back_under_the_prediction_id(
    service: httpx.Client, client: triton.InferenceServerClient
) -> None:
    outputs = wanted("prediction_id", "error")
    result = client.infer("palette", [tensor([*photos(2), b"x"])], outputs=outputs)
    first, second, failed = result.as_numpy("prediction_id")
    assert (first != second, failed) == (True, b"")
    labels = {"labels": [{"id": first.decode(), "label": "red"}]}
    assert service.post("/feedback", json=labels).is_success


def test_the_images_count_for_the_tail_as_those_of_classify_do(bundle: Path) -> None:
    with running(bundle) as service:
        service.post(INFER, json=document())
        service.post(INFER, json=document())
        service.post(INFER, json=document(), headers={"X-Taillift-Count": "no"})
        assert service.get("/classes").json()["window"]["predictions"] == 1
        for reason in ("repeated", "asked"):
            assert sample(service, "taillift_tail_omissions_total", reason=reason) == 1


@pytest.fixture
def repository(tmp_path: Path, bundle: Path) -> Iterator[httpx.Client]:
    """A service with champion 1, version 2, and version 3 of other classes."""
    store = VersionStore.at(tmp_path / "store")
    store.promote(store.add(bundle))
    store.add(write_bundle(tmp_path / "second", name="second"))
    keys = tmp_path / "admin.keys"
    keys.write_text(f"{ADMIN_KEY} ann\n")
    engine = Engine(read_settings(store=store.folder, port=0, admin_keys_file=keys))
    with serving(engine) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        client.headers["X-API-Key"] = ADMIN_KEY
        yield client


def test_versions_are_listed_loaded_asked_and_unloaded(repository: httpx.Client) -> None:
    model = "/v2/repository/models/palette"
    assert [row["state"] for row in index(repository)] == ["READY", "UNAVAILABLE"]
    assert repository.post(f"{model}/load").status_code == 200  # The newest, as challenger.
    assert [row["state"] for row in index(repository)] == ["READY", "READY"]
    for version, number in (("challenger", "2"), ("2", "2"), ("champion", "1"), ("1", "1")):
        answer = repository.post(f"/v2/models/palette/versions/{version}/infer", json=document())
        assert answer.json()["model_version"] == number
        assert answer.headers["X-Taillift-Version"] == number
    assert repository.post(f"{model}/unload").status_code == 200
    assert [row["version"] for row in index(repository, ready=True)] == ["1"]
    refused = repository.post(f"{model}/unload", json={"parameters": {"version": 1}})
    assert (refused.status_code, "the champion" in refused.json()["error"]) == (409, True)
    champion = {"parameters": {"version": "2", "role": "champion"}}
    assert repository.post(f"{model}/load", json=champion).status_code == 200
    assert repository.get("/model").headers["X-Taillift-Version"] == "2"
    assert top_labels(repository.post("/classify", content=RED)) == ["red"]


def test_what_cannot_be_loaded_is_refused(repository: httpx.Client, tmp_path: Path) -> None:
    model = "/v2/repository/models/palette"
    for parameters, status, words in (
        ({"version": 7}, 404, "no version 7 (it has 1, 2)"),
        ({"version": "two"}, 400, "`version`"),
        ({"role": "king"}, 400, "`role`"),
        ({"verson": 1}, 400, 'did you mean "version"?'),
        ({"version": 1, "role": "challenger"}, 409, "champion itself"),
    ):
        answer = repository.post(f"{model}/load", json={"parameters": parameters})
        assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text
    (tmp_path / "store" / "versions" / "2" / "model.onnx").write_bytes(b"damaged")
    answer = repository.post(f"{model}/load", json={"parameters": {"version": 2}})
    assert (answer.status_code, "model.onnx" in answer.json()["error"]) == (409, True)
    assert [row["state"] for row in index(repository)] == ["READY", "UNAVAILABLE"]
    assert "model.onnx" in index(repository)[1]["reason"]
    no_key = {"X-API-Key": "another-key-of-the-tests"}
    assert repository.post(f"{model}/load", headers=no_key).status_code == 401


def index(repository: httpx.Client, **body: object) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = repository.post("/v2/repository/index", json=body).json()
    return rows
