"""The processes that train one model together, and the precision in which they compute."""

import logging
import os
from collections.abc import Sequence
from typing import Final, Literal, TypeVar, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, split

from taillift.models.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]
Item = TypeVar("Item")

# Fabric's names. In all three the weights stay float32; operations are autocast.
FABRIC_PRECISION: Final[dict[Precision, Literal["32-true", "bf16-mixed", "16-mixed"]]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
# torch's names for the instructions of x86-64 (the first two) and ARM that multiply in bfloat16.
CPU_BF16: Final = ("amx_bf16", "avx512_bf16", "bf16")
# A large tensor is summed over processes this many rows at a time, to bound the memory of copies.
ROWS_AT_ONCE: Final = 256

# At its default level, Fabric prints every setting that it was given.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


class Processes:
    """This process among the `size` that train together: its `rank` from 0, and its `device`.

    Without `torchrun` there is only this process. A method marked "collective" waits for the other
    processes: all of them have to call it, in the same order.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """Join the other processes; `device` None means CUDA if there is a GPU, else the CPU.

        Of several processes on one machine, each takes the GPU with its local rank. Raises
        `UserError` if there are fewer GPUs than processes.
        """
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._accelerator = device.type
        self._local_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self._devices: int | list[int] = self._local_size
        if device.type == "cuda":
            gpus = torch.cuda.device_count()
            if self._local_size > gpus:
                raise UserError(
                    f"{self._local_size} processes on a machine with {gpus} GPUs: pass "
                    f"--nproc-per-node {gpus}"
                )
            if device.index is not None and self._local_size == 1:
                self._devices = [device.index]
        self._fabric = self.fabric("fp32")
        self.rank = self._fabric.global_rank
        self.size = self._fabric.world_size
        self.device = self._fabric.device

    def fabric(self, precision: Precision) -> Fabric:
        """Return the `Fabric` that autocasts and scales gradients for `precision`."""
        size = int(os.environ.get("WORLD_SIZE", 1))
        fabric = Fabric(
            accelerator=self._accelerator,
            devices=self._devices,
            num_nodes=size // self._local_size,
            strategy="ddp" if size > 1 else "auto",
            precision=FABRIC_PRECISION[precision],
        )
        fabric.launch()
        return fabric

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's part of `items`: every `size`-th, from its rank on."""
        return items[self.rank :: self.size]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum of all processes' tensors, which have the same shape. Collective."""
        if self.size == 1:
            return tensor
        total = self._fabric.all_reduce(tensor.to(self.device, copy=True), reduce_op="sum")
        return cast(Tensor, total).to(tensor.device)

    def all_reduce_in_place(self, tensor: Tensor) -> None:
        """Replace a large tensor [N, ...] by the sum of all processes' tensors. Collective."""
        if self.size > 1:
            for rows in split(tensor, ROWS_AT_ONCE):
                rows.copy_(self.all_reduce(rows))

    def broadcast(self, item: Item) -> Item:
        """Return the first process's item, whose tensors are on the CPU. Collective."""
        return self._fabric.broadcast(item)


def resolve_precision(
    requested: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device
) -> Precision:
    """Return the precision to train in on `device`; `auto` is bf16 if that is faster there.

    Raises `UserError` if the device does not support it.
    """
    if requested == "auto":
        return "bf16" if bf16_is_faster(device) else "fp32"
    if requested == "fp16" and device.type == "cpu":
        raise UserError("precision = fp16 needs a GPU: set it to auto, bf16 or fp32")
    return requested


def bf16_is_faster(device: torch.device) -> bool:
    """Return whether the device has instructions that multiply in bfloat16.

    Nothing is timed, so that one machine trains in the same precision every time.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in CPU_BF16)
