"""What a graph's weights are: a bundle has fp32, and smaller variants beside it."""

from enum import StrEnum
from typing import Final


class Precision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


FILES: Final = {
    Precision.FP32: "model.onnx",
    Precision.FP16: "model.fp16.onnx",
    Precision.INT8: "model.int8.onnx",
}
