"""Requests of the Open Inference Protocol 2: a JSON document, and perhaps the bytes of a tensor.

What a tensor's shape says is compared with what has come; nothing is allocated by it.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import repr as short_repr
from typing import Annotated, Any, Final, Literal

from PIL import Image
from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from pydantic_core import from_json

from taillift.models.errors import did_you_mean
from taillift.service.http.schemas import ClassifyQuery
from taillift.service.http.uploads import MAX_MEMBERS, SentObject
from taillift.service.problems import BodyTooLargeError, MalformedError

# The header that says how many bytes of a body are JSON; those of the tensors follow.
JSON_BYTES: Final = "Inference-Header-Content-Length"
IMAGE: Final = "image"
CHANNELS: Final = 3

OUTPUTS: Final = (
    "label",
    "confidence",
    "group",
    "views",
    "decision",
    "probabilities",
    "set",
    "prediction_id",
    "error",
)
# What a request gets that names no outputs.
USUAL_OUTPUTS: Final = OUTPUTS[:5]

# Values of a JSON document, brackets and names included, and the most bytes that one takes.
MAX_VALUES: Final = 2**21
VALUE_BYTES: Final = 88
MAX_ID: Final = 1_000
# Texts of the document, and of one that is not ASCII, are in memory several times while it is read.
COPIES: Final = 3
WIDE_COPIES: Final = 6
# Characters of base64, a multiple of 4, that are decoded while other threads wait.
BASE64_PIECE: Final = 2**20

QUERY: Final = ("top_k", "ensemble", "prior", "coverage", "tail")
SEQUENCES: Final = "sequence_"
SHARED_MEMORY: Final = "shared_memory_"
MICROSECOND: Final = 1e-6
# Microseconds; Python's integers have no largest one.
LONGEST: Final = 2**53

Dimension = Annotated[StrictInt, Field(ge=1)]


class ProtocolPart(SentObject):
    """A part of a request's document."""

    model_config = ConfigDict(frozen=True)


class InputParameters(ProtocolPart):
    """`content_type` is what MLServer's clients send with base64, which is what JSON needs."""

    binary_data_size: Annotated[StrictInt, Field(ge=0)] | None = None
    content_type: Literal["base64"] | None = None


class InputTensor(ProtocolPart):
    name: StrictStr
    shape: Annotated[list[Dimension], Field(fail_fast=True)]
    datatype: StrictStr
    parameters: InputParameters | None = None
    data: Any = None


class OutputParameters(ProtocolPart):
    binary_data: StrictBool | None = None
    classification: Annotated[StrictInt, Field(ge=1)] | None = None


class OutputRequest(ProtocolPart):
    name: StrictStr
    parameters: OutputParameters | None = None


class InferDocument(ProtocolPart):
    """The document of a request; KServe's SDK repeats in it what the address says."""

    model_name: StrictStr | None = None
    model_version: StrictStr | None = None
    id: Annotated[StrictStr, Field(max_length=MAX_ID)] | None = None
    parameters: dict[str, Any] | None = None
    inputs: Annotated[list[InputTensor], Field(fail_fast=True, max_length=MAX_MEMBERS)]
    outputs: (
        Annotated[list[OutputRequest], Field(fail_fast=True, max_length=len(OUTPUTS))] | None
    ) = None


@dataclass(frozen=True)
class WantedOutput:
    """An output as it is to be sent; `classification` is the number of classes to name, or 0."""

    name: str
    binary: bool = False
    classification: int = 0


@dataclass(frozen=True)
class InferRequest:
    """A request to classify `images`, each an encoded file; `seconds` is its own deadline."""

    images: Sequence[bytes]
    outputs: Sequence[WantedOutput] = tuple(WantedOutput(name) for name in USUAL_OUTPUTS)
    query: ClassifyQuery = field(default_factory=ClassifyQuery)
    seconds: float | None = None
    id: str | None = None

    def wants(self, name: str) -> bool:
        return any(output.name == name for output in self.outputs)


def json_size(header: str | None, body: bytes) -> int:
    """Return how many bytes of a body are JSON, by the header `JSON_BYTES`: without it, all.

    Raises `MalformedError` if the header is not a number, or if the body is shorter.
    """
    if header is None:
        return len(body)
    if not (header.isascii() and header.isdecimal()) or len(header) > len(str(len(body))):
        raise MalformedError(
            f"header `{JSON_BYTES}`: {header[:80]!r} is not a number of bytes within the body's "
            f"{len(body):,}"
        )
    if (size := int(header)) > len(body):
        raise MalformedError(
            f"header `{JSON_BYTES}`: the body has {len(body):,} bytes, fewer than {size:,}"
        )
    return size


def parsing_bytes(body: bytes, size: int) -> int:
    """Return the bytes that parsing a body with so many bytes of JSON may take, besides the body.

    Raises `BodyTooLargeError` if the JSON has more than `MAX_VALUES` values.
    """
    values = sum(body.count(mark, 0, size) for mark in (b",", b"[", b"{", b":"))
    if values > MAX_VALUES:
        raise BodyTooLargeError(
            f"the JSON has about {values:,} values, more than the {MAX_VALUES:,} allowed: send the "
            "tensor as binary data"
        )
    copies = COPIES if body[:size].isascii() else WIDE_COPIES
    return copies * size + VALUE_BYTES * values + COPIES * (len(body) - size)


def parse(body: bytes, size: int, max_images: int) -> InferRequest:
    """Parse a body whose first `size` bytes are JSON; if none are, it is one photo.

    Raises `MalformedError`.
    """
    if size == 0:
        if not body:
            raise MalformedError("the request is empty: send a document with `inputs`, or a photo")
        return InferRequest([body])
    document = parse_document(body[:size])
    query, seconds, binary = parse_parameters(document.parameters or {})
    if len(document.inputs) != 1:
        raise MalformedError(
            f"`inputs` has {len(document.inputs)} tensors: the model has one input, `{IMAGE}`"
        )
    return InferRequest(
        images_of(document.inputs[0], memoryview(body)[size:], max_images),
        wanted_outputs(document.outputs, binary, query),
        query,
        seconds,
        document.id,
    )


def parse_document(text: bytes) -> InferDocument:
    """Parse the JSON of a request; raises `MalformedError`."""
    content = parse_json(text)
    try:
        return InferDocument.model_validate(content)
    except ValidationError as error:
        raise document_problem(error) from None


def parse_json(text: bytes) -> object:
    """Return what JSON in UTF-8 says; raises `MalformedError` if it says nothing.

    All other threads wait meanwhile, for about a millisecond for each megabyte.
    """
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        reason = str(error)[:120]
    try:
        text.decode()
    except UnicodeDecodeError:
        raise MalformedError(
            "the body is not JSON: if it is one photo, send it with the header "
            f"`{JSON_BYTES}: 0`; if the bytes of a tensor follow the JSON, say in this header "
            "where they begin"
        ) from None
    if reason.startswith("recursion limit"):
        reason = "it is nested too deeply"
    raise MalformedError(f"the JSON cannot be read: {reason}")


def document_problem(error: ValidationError) -> MalformedError:
    """Return the problem with the first thing that is wrong in a document."""
    errors = error.errors(include_url=False, include_context=False)
    # A misspelt member is missing, too.
    first = min(errors, key=lambda one: one["type"] != "extra_forbidden")
    place = ".".join(str(part)[:80] for part in first["loc"])
    name = str(first["loc"][-1])[:80] if first["loc"] else ""
    if first["type"] != "extra_forbidden":
        return MalformedError(f"`{place or 'the document'}`: {first['msg']}")
    if name.startswith(SHARED_MEMORY):
        return MalformedError(f"`{place}`: the service reads no shared memory: send the data")
    parts = (InferDocument, InputTensor, InputParameters, OutputRequest, OutputParameters)
    known = [name for part in parts for name in part.model_fields]
    return MalformedError(f"`{place}` is not known{did_you_mean(name, known)}")


def parse_parameters(
    parameters: Mapping[str, Any],
) -> tuple[ClassifyQuery, float | None, bool]:
    """Return the query, the seconds until the answer is unwanted, and if outputs are binary.

    Raises `MalformedError`.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    for name in given:
        if name.startswith(SEQUENCES):
            raise MalformedError(f"parameter `{name[:80]}`: the model keeps no state of sequences")
        if name not in (known := (*QUERY, "timeout", "binary_data_output")):
            raise MalformedError(
                f"parameter `{name[:80]}` is not known{did_you_mean(name[:80], known)}: the known "
                f"ones are {', '.join(known)}"
            )
    timeout, binary = given.pop("timeout", None), given.pop("binary_data_output", False)
    if not isinstance(binary, bool):
        raise MalformedError("parameter `binary_data_output` is not true or false")
    for name, value in given.items():
        if isinstance(value, bool):
            raise MalformedError(f"parameter `{name}` cannot be true or false")
    if timeout is not None and not (_is_number(timeout) and timeout > 0):
        raise MalformedError("parameter `timeout` is not a positive number of microseconds")
    try:
        query = ClassifyQuery.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        value = short_repr(first["input"])
        raise MalformedError(
            f"parameter `{first['loc'][0]}`: {first['msg']}, not {value}"
        ) from None
    return query, None if timeout is None else MICROSECOND * min(timeout, LONGEST), binary


def wanted_outputs(
    outputs: Sequence[OutputRequest] | None, binary: bool, query: ClassifyQuery
) -> Sequence[WantedOutput]:
    """Return the outputs of a request, the usual ones if it names none; `binary` is its default.

    Raises `MalformedError`.
    """
    if not outputs:
        return [WantedOutput(name, binary) for name in USUAL_OUTPUTS]
    wanted: dict[str, WantedOutput] = {}
    for output in outputs:
        name, parameters = output.name, output.parameters or OutputParameters()
        if name not in OUTPUTS:
            raise MalformedError(
                f"output `{name[:80]}` is not known{did_you_mean(name[:80], OUTPUTS)}: the known "
                f"ones are {', '.join(OUTPUTS)}"
            )
        if name in wanted:
            raise MalformedError(f"output `{name}` is asked for twice")
        if parameters.classification and name != "probabilities":
            raise MalformedError(
                f"output `{name}`: ask for `classification` of the output `probabilities`"
            )
        if name == "set" and query.coverage is None:
            raise MalformedError(
                "output `set`: its sets need the parameter `coverage`, such as 0.9"
            )
        own = parameters.binary_data
        wanted[name] = WantedOutput(
            name, binary if own is None else own, parameters.classification or 0
        )
    return list(wanted.values())


def images_of(tensor: InputTensor, rest: memoryview, max_images: int) -> Sequence[bytes]:
    """Return the encoded images of an input; `rest` is what follows the JSON.

    Raises `MalformedError`.
    """
    if tensor.name != IMAGE:
        raise MalformedError(f"input `{tensor.name[:80]}` is not known: the input is `{IMAGE}`")
    count = tensor.shape[0] if tensor.shape else 0
    if count > max_images:
        raise MalformedError(f"the input has more than the {max_images} images allowed")
    size = None if tensor.parameters is None else tensor.parameters.binary_data_size
    if (size or 0) != len(rest):
        raise MalformedError(
            f"{len(rest):,} bytes follow the JSON, and the input's `binary_data_size` is "
            f"{'absent' if size is None else f'{size:,}'}"
        )
    if size is not None and tensor.data is not None:
        raise MalformedError(
            f"the input `{IMAGE}` has both `data` and `binary_data_size`: send one"
        )
    match tensor.datatype, tensor.shape:
        case "BYTES", [_] | [_, 1]:
            return encoded_images(tensor.data, count) if size is None else elements(rest, count)
        case "UINT8", [_, height, width, 3]:
            pixels = pixel_bytes(tensor.data) if size is None else rest
            return png_images(pixels, count, height, width)
        case "BYTES" | "UINT8", _:
            shapes = {"BYTES": "[n] or [n,1]", "UINT8": "[n,height,width,3]"}[tensor.datatype]
            raise MalformedError(f"the shape of a {tensor.datatype} input is {shapes}")
        case _:
            raise MalformedError(
                f"the datatype {tensor.datatype[:80]!r} is not taken: send photos as BYTES (JPEG, "
                "PNG or WebP) or as UINT8 (RGB)"
            )


def elements(data: memoryview, count: int) -> list[bytes]:
    """Return the `count` elements of a binary BYTES tensor, each behind its length.

    Raises `MalformedError` if there are more or fewer, or if one is cut off.
    """
    found: list[bytes] = []
    start = 0
    while start < len(data) and len(found) <= count:
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if end > len(data):
            raise MalformedError(
                f"element {len(found)} of the tensor is cut off: each begins with its length, in 4 "
                "bytes, little-endian"
            )
        found.append(bytes(data[start + 4 : end]))
        start = end
    return _counted(found, count)


def encoded_images(data: object, count: int) -> list[bytes]:
    """Return the `count` elements of a BYTES tensor in JSON, which are base64.

    Raises `MalformedError` if they are anything else.
    """
    images: list[bytes] = []
    for element in _counted(flattened(data), count):
        try:
            if not isinstance(element, str):
                raise TypeError
            # Not split: a text of many short words would take many times its size.
            text = element.encode("ascii").replace(b"\n", b"").replace(b"\r", b"")
            images.append(decoded(text))
        except (TypeError, ValueError):
            raise MalformedError(
                f"element {len(images)} of `data` is not base64, as photos in JSON have to be"
            ) from None
    return images


def decoded(text: bytes) -> bytes:
    """Return what base64 says, decoded in pieces, between which other threads have their turn.

    Raises `ValueError` if it is not base64.
    """
    file = io.BytesIO()
    for start in range(0, len(text), BASE64_PIECE):
        piece = text[start : start + BASE64_PIECE]
        if piece.endswith(b"=") and start + len(piece) < len(text):
            raise ValueError("something follows the end of the base64")
        file.write(base64.b64decode(piece, validate=True))
    return file.getvalue()


def pixel_bytes(data: object) -> bytes:
    """Return the bytes of a UINT8 tensor in JSON; raises `MalformedError` if it has others."""
    try:
        return bytes(flattened(data))
    except (TypeError, ValueError):
        raise MalformedError("`data` of a UINT8 input has integers from 0 to 255 only") from None


def flattened(data: object) -> list[Any]:
    """Return the elements of nested lists; raises `MalformedError` if `data` is not a list."""
    if not isinstance(data, list):
        raise MalformedError(f"the input `{IMAGE}` has neither `data` nor `binary_data_size`")
    while data and all(isinstance(row, list) for row in data):
        data = [element for row in data for element in row]
    return data


def png_images(pixels: bytes | memoryview, count: int, height: int, width: int) -> list[bytes]:
    """Return RGB images [n, height, width, 3] as PNG files that are not compressed.

    So they go the way of any photo. Raises `MalformedError` if the number of bytes is another.
    """
    size = height * width * CHANNELS
    if len(pixels) != count * size:
        raise MalformedError(f"the input has {len(pixels):,} values, not the product of its shape")
    files = []
    for start in range(0, len(pixels), size):
        file = io.BytesIO()
        image = Image.frombytes("RGB", (width, height), pixels[start : start + size])
        image.save(file, "PNG", compress_level=0)
        files.append(file.getvalue())
    return files


def _counted(found: list[Any], count: int) -> list[Any]:
    if len(found) != count:
        raise MalformedError(f"the input does not have the {count:,} elements that its shape says")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
