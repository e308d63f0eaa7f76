"""In what numbers a model is trained."""

import math
import time
from functools import cache
from typing import Final, Literal

import torch
from torch import nn

from models import UserError

Precision = Literal["fp32", "bf16", "fp16"]

# As Fabric calls them: weights stay float32, and the rest is autocast.
PLUGINS: Final[dict[Precision, Literal["32-true", "bf16-mixed", "16-mixed"]]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


def settle(wanted: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """What to train in on `device`; `auto` is bf16 where that is faster.

    Raises `UserError` where the device does not have it.
    """
    if wanted == "auto":
        return "bf16" if bf16_is_faster(device) else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision = fp16 needs a GPU: set it to auto, bf16 or fp32")
    return wanted


@cache
def bf16_is_faster(device: torch.device) -> bool:
    """Whether bfloat16 autocast pays: on CUDA where it is built in, on a CPU by a measurement."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    layer, rows = nn.Linear(512, 2048), torch.randn(512, 512)
    seconds = {True: math.inf, False: math.inf}
    for _ in range(4):
        for enabled in seconds:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                start = time.perf_counter()
                layer(rows)
                seconds[enabled] = min(seconds[enabled], time.perf_counter() - start)
    return seconds[True] < 0.8 * seconds[False]
