"""The base of every manifest record, and the words and limits that the records share."""

from enum import StrEnum
from typing import Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

# Of an image, in pixels, and how many times the longer side may be the shorter one.
MAX_PIXELS: Final = 50_000_000
MAX_ASPECT: Final = 32

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
    """An immutable record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(SchemaModel):
    """The way from a decoded image to the pixels that the graph takes.

    `size` S and `expand` are in pixels. `mean` and `std` are per RGB channel on a 0 to 1 scale and
    are applied inside the graph.
    """

    size: int = Field(gt=0)
    expand: int = Field(ge=0)
    interpolation: Literal["bilinear", "bicubic"]
    antialias: Literal[True] = True
    resize_mode: Literal["shortest", "squash"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
