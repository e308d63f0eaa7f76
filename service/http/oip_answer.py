"""Answers of the Open Inference Protocol 2: output tensors, as JSON or as bytes behind it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from fastapi import Response

from taillift.models.bundle.classifier import top
from taillift.models.bundle.predictor import Prediction
from taillift.service.http.oip_request import JSON_BYTES, InferRequest, WantedOutput
from taillift.service.http.schemas import ClassifiedImage, FailedImage, LivePriorReport

OutputType = Literal["BYTES", "FP32", "INT32"]
NUMPY_TYPES: Final = {"FP32": "<f4", "INT32": "<i4"}
ANY: Final = -1


class OutputForm(NamedTuple):
    """The datatype of an output, and its shape for one image: none, or any number of values."""

    datatype: OutputType
    shape: Sequence[int]


FORMS: Final = {
    "label": OutputForm("BYTES", [ANY]),
    "confidence": OutputForm("FP32", [ANY]),
    "group": OutputForm("BYTES", [ANY]),
    "views": OutputForm("INT32", []),
    "decision": OutputForm("BYTES", []),
    "probabilities": OutputForm("FP32", [ANY]),
    "set": OutputForm("BYTES", []),
    "prediction_id": OutputForm("BYTES", []),
    "error": OutputForm("BYTES", []),
}


Result = ClassifiedImage | FailedImage


class AnsweredImage(NamedTuple):
    """The result of one image and its prediction, which a failed one does not have."""

    result: Result
    prediction: Prediction | None


@dataclass(frozen=True)
class OutputTensor:
    """One output of all images; `values` are in row-major order, NaN where there is none."""

    name: str
    datatype: OutputType
    shape: Sequence[int]
    values: Sequence[str | float]

    def to_bytes(self) -> bytes:
        """Return the values as binary data; each text comes behind its length in 4 bytes."""
        if self.datatype != "BYTES":
            return np.asarray(self.values, NUMPY_TYPES[self.datatype]).tobytes()
        texts = [str(value).encode("utf-8", "replace") for value in self.values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)

    def to_json(self) -> Sequence[str | float | None]:
        """Return the values as JSON has them: numbers with six significant digits, NaN as null."""
        if self.datatype != "FP32":
            return self.values
        numbers = map(float, self.values)
        return [None if math.isnan(number) else float(f"{number:.6g}") for number in numbers]


def write_answer(
    request: InferRequest,
    name: str,
    version: str,
    images: Sequence[AnsweredImage],
    labels: Sequence[str],
    live: LivePriorReport | None = None,
) -> Response:
    """Return the answer on a request's images by the model `name` of this version.

    `live` is the live prior, if the request asked for it; the answer names it as a parameter.
    """
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for wanted in request.outputs:
        tensor = output_tensor(wanted, images, labels, request.query.top_k)
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if wanted.binary:
            binary.append(tensor.to_bytes())
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            output["data"] = tensor.to_json()
        outputs.append(output)
    head: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id is not None:
        head["id"] = request.id
    if live is not None:
        as_of = None if live.as_of is None else live.as_of.isoformat()
        head["parameters"] = {"prior": live.prior, "prior_as_of": as_of or "never"}
    text = json.dumps({**head, "outputs": outputs}, separators=(",", ":")).encode()
    if not binary:
        return Response(text, media_type="application/json")
    sizes = {JSON_BYTES: str(len(text))}
    return Response(b"".join([text, *binary]), 200, sizes, "application/octet-stream")


def output_tensor(
    wanted: WantedOutput, images: Sequence[AnsweredImage], labels: Sequence[str], top_k: int
) -> OutputTensor:
    """Return one output of the images; a failed one has empty texts, no views, and NaN.

    `labels` are those of all classes, and `top_k` is the number of them that is named.
    """
    form, count, width = FORMS[wanted.name], len(images), len(labels)
    datatype = form.datatype
    if not form.shape:
        values = [image_value(wanted.name, image.result) for image in images]
        return OutputTensor(wanted.name, datatype, [count], values)
    rows: list[Sequence[str] | Sequence[float]]
    if wanted.classification:
        datatype, width = "BYTES", min(wanted.classification, width)
        rows = [named_classes(image.prediction, width, labels) for image in images]
    elif wanted.name == "probabilities":
        rows = [image.prediction.requested.tolist() if image.prediction else [] for image in images]
    else:
        width = min(top_k, width)
        rows = [label_values(wanted.name, image.result) for image in images]
    missing = "" if datatype == "BYTES" else math.nan
    return OutputTensor(
        wanted.name,
        datatype,
        [count, width],
        [value for row in rows for value in row or [missing] * width],
    )


def image_value(name: str, result: Result) -> str | int:
    """Return the output of one image that has one value."""
    match name, result:
        case "error", FailedImage():
            return result.error.detail
        case "views", FailedImage():
            return 0
        case "views", ClassifiedImage():
            return result.views
        case "decision", ClassifiedImage():
            return result.decision or ""
        case "set", ClassifiedImage():
            return json.dumps(result.set)
        case "prediction_id", ClassifiedImage():
            return result.id or ""
        case _:
            return ""


def label_values(name: str, result: Result) -> Sequence[str] | Sequence[float]:
    """Return the output of one image that has a value for each label that is named."""
    if isinstance(result, FailedImage):
        return []
    match name:
        case "label":
            return [named.label for named in result.predictions]
        case "group":
            return [named.group for named in result.predictions]
        case _:
            return [named.confidence for named in result.predictions]


def named_classes(prediction: Prediction | None, count: int, labels: Sequence[str]) -> list[str]:
    """Return the most probable classes as Triton's classification extension writes them.

    Each is `probability:index:label`.
    """
    if prediction is None:
        return []
    probabilities = prediction.requested
    return [
        f"{probabilities[index]:.6g}:{index}:{labels[index]}" for index in top(probabilities, count)
    ]
