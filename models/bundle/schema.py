"""The base of everything that a manifest holds, and the words that its parts share."""

from enum import StrEnum
from typing import Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Group = Literal["many", "medium", "few"]
GROUPS: tuple[Group, ...] = get_args(Group)


class SchemaModel(BaseModel):
    """Immutable, and no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


MAX_PIXELS: Final = 50_000_000
MAX_ASPECT: Final = 32


class Precision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


FILES: Final = {
    Precision.FP32: "model.onnx",
    Precision.FP16: "model.fp16.onnx",
    Precision.INT8: "model.int8.onnx",
}


class Preprocessing(SchemaModel):
    """`size` S and `expand` are in pixels; `mean` and `std` are per RGB channel on a 0 to 1 scale
    and are applied inside the graph.
    """

    size: int = Field(gt=0)
    expand: int = Field(ge=0)
    interpolation: Literal["bilinear", "bicubic"]
    antialias: Literal[True] = True
    resize_mode: Literal["shortest", "squash"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
