"""In what numbers a model is trained."""

from typing import Final, Literal

import torch

from models import UserError

Precision = Literal["fp32", "bf16", "fp16"]

# As Fabric calls them: weights stay float32, and the rest is autocast.
PLUGINS: Final[dict[Precision, Literal["32-true", "bf16-mixed", "16-mixed"]]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
# Of x86-64 and of ARM, as torch names them.
CPU_BF16: Final = ("amx_bf16", "avx512_bf16", "bf16")


def settle(wanted: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """What to train in on `device`; `auto` is bf16 where that is faster.

    Raises `UserError` where the device does not have it.
    """
    if wanted == "auto":
        return "bf16" if bf16_is_faster(device) else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision = fp16 needs a GPU: set it to auto, bf16 or fp32")
    return wanted


def bf16_is_faster(device: torch.device) -> bool:
    """Whether bfloat16 autocast pays: where the device multiplies in it.

    It is not timed: the same machine has to train in the same numbers every time.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return any(found.get(one) for one in CPU_BF16)
