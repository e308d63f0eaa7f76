"""The base of every manifest record, and the words and limits that the records share."""

from enum import StrEnum
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

# Of an image, in pixels, and how many times the longer side may be the shorter one.
MAX_PIXELS: Final = 50_000_000
MAX_ASPECT: Final = 32
# A file may have so many pixels for each of its bytes, and so many more. A JPEG with Huffman codes
# has 512 at most, a PNG in colour 344; an even picture of any format may have a few free ones.
PIXELS_PER_BYTE: Final = 1_000
FREE_PIXELS: Final = 1_000_000

# What a number of a manifest may be; sums of shares are off by rounding errors.
ROUNDING: Final = 1e-6
Count = Annotated[int, Field(ge=0, le=2**48)]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=-ROUNDING, le=100 + ROUNDING)]
PercentChange = Annotated[float, Field(ge=-100 - ROUNDING, le=100 + ROUNDING)]
Amount = Annotated[float, Field(ge=0)]
Deviation = Annotated[float, Field(gt=0)]
# A number of an answer, which in JSON has six significant digits.
SixDigits = Annotated[
    float,
    PlainSerializer(lambda number: float(f"{number:.6g}"), return_type=float, when_used="json"),
]

Group = Literal["many", "medium", "few"]
GROUPS: tuple[Group, ...] = get_args(Group)


class Precision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


# The graph of each precision in a bundle's folder.
FILES: Final = {
    Precision.FP32: "model.onnx",
    Precision.FP16: "model.fp16.onnx",
    Precision.INT8: "model.int8.onnx",
}


class SchemaModel(BaseModel):
    """An immutable record that refuses unknown keys, and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Preprocessing(SchemaModel):
    """The way from a decoded image to the pixels that the graph takes.

    `size` S and `expand` are in pixels. The longer side of a canvas is mostly a fraction: bundles
    before 0.2.0 rounded it, and since then it is cut off, as by torchvision. `mean` and `std` are
    per RGB channel on a 0 to 1 scale and are applied inside the graph.
    """

    size: int = Field(gt=0, le=2**13)
    expand: int = Field(ge=0, le=2**13)
    interpolation: Literal["bilinear", "bicubic"]
    antialias: Literal[True] = True
    resize_mode: Literal["shortest", "squash"]
    long_side: Literal["rounded", "cut"] = "rounded"
    mean: tuple[Share, Share, Share]
    std: tuple[Deviation, Deviation, Deviation]
