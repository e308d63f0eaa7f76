"""In what numbers a model is trained."""

import logging
import os
from collections.abc import Sequence
from typing import Final, Literal, TypeVar, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, split

from taillift.models.errors import UserError

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


Item = TypeVar("Item")

# It tells of every setting that it was given.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

# Of a large tensor that is summed over processes: what bounds the memory of copies.
ROWS_AT_ONCE: Final = 256


def is_first() -> bool:
    """Whether this is the one process that writes files and prints."""
    return _number("RANK", 0) == 0


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Processes:
    """This process among the `size` that train together: its `rank` from 0, and its `device`.

    Without `torchrun` it is alone. What is said to be done by all must be called by all, in the
    same order.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """`device` tells CPU from CUDA, the best of both where None.

        Of several processes each takes the GPU of its number on its machine. Raises `UserError`
        where there are not enough.
        """
        device = device or default_device()
        self._accelerator = device.type
        self._devices: int | list[int] = _number("LOCAL_WORLD_SIZE", 1)
        if device.type == "cuda":
            _check_gpus(self._devices)
            if device.index is not None and self._devices == 1:
                self._devices = [device.index]
        self._fabric = self.fabric("fp32")
        self.rank = self._fabric.global_rank
        self.size = self._fabric.world_size
        self.device = self._fabric.device

    def fabric(self, precision: Precision) -> Fabric:
        """What autocasts, scales and steps in that precision on this process's device."""
        size = _number("WORLD_SIZE", 1)
        fabric = Fabric(
            accelerator=self._accelerator,
            devices=self._devices,
            num_nodes=size // _number("LOCAL_WORLD_SIZE", 1),
            strategy="ddp" if size > 1 else "auto",
            precision=PLUGINS[precision],
        )
        fabric.launch()
        return fabric

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of `items`, every `size`-th."""
        return items[self.rank :: self.size]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, which have one shape; done by all."""
        if self.size == 1:
            return tensor
        total = self._fabric.all_reduce(tensor.to(self.device, copy=True), reduce_op="sum")
        return cast(Tensor, total).to(tensor.device)

    def sum_in_place(self, tensor: Tensor) -> None:
        """`sum` of a large tensor [N, ...] of this process, a part at a time; done by all."""
        if self.size > 1:
            for part in split(tensor, ROWS_AT_ONCE):
                part.copy_(self.sum(part))

    def broadcast(self, item: Item) -> Item:
        """The first process's item, whose tensors are on the CPU; done by all."""
        return self._fabric.broadcast(item)


def _check_gpus(wanted: int) -> None:
    found = torch.cuda.device_count()
    if wanted > found:
        raise UserError(
            f"{wanted} processes on a machine with {found} GPUs: pass --nproc-per-node {found}"
        )


def _number(name: str, alone: int) -> int:
    """What torchrun says in the environment; `alone` without it."""
    return int(os.environ.get(name, alone))
