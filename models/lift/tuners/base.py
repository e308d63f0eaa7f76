"""What a fine-tuning method is to a recipe: a name, a few options, and one verb."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from taillift.models.errors import UserError
from taillift.models.lift.block import ALL, Block

Option = TypeVar("Option")


class Tuner(BaseModel, ABC):
    """One method's options. `name` tells the methods apart; an option that is None is adaptive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str

    def resolved(self, classes: int, blocks: int, width: int) -> Self:
        """With every adaptive option settled for C classes, L tuned blocks and tokens of D."""
        del classes, blocks, width
        return self

    @abstractmethod
    def attach(self, blocks: Sequence[nn.Module]) -> None:
        """Put the method into a tower's last stages and unfreeze what it trains.

        Raises `UserError` where the stages have no place for it, and `ValueError` where an
        adaptive option is not settled yet.
        """


def transformer_blocks(method: str, stages: Sequence[nn.Module]) -> list[Block]:
    """The stages as blocks; raises `UserError` where one is none."""
    blocks = [stage for stage in stages if isinstance(stage, Block)]
    if not blocks or len(blocks) < len(stages):
        raise UserError(
            f"{method} needs transformer blocks, which this backbone, a ResNet, does not have: "
            "tune bias, norm or full"
        )
    return blocks


def settled(option: Option | None, method: str) -> Option:
    if option is None:
        raise ValueError(f"{method} has an adaptive option: call resolved() first")
    return option


def adaptive_rank(classes: int, blocks: int) -> int:
    """2 ** max(0, floor(log2(C / 2L))): the bottlenecks get no more weights than the head.

    LIFT, section 3.3.
    """
    return power_of_two(classes / (2 * blocks))


def power_of_two(most: float) -> int:
    """The greatest power of two up to `most`, but at least 1."""
    return int(2 ** max(0, math.floor(math.log2(most))))


# Places of a block that a wrapper can take, by what a method may be restricted to.
SLOTS: Final = {
    "attention": ("attention.qkv", "attention.proj"),
    "mlp": ("mlp.fc1", "mlp.fc2"),
    "norm": ("norm1", "norm2"),
}


class Attachment(nn.Module):
    """A module that a method attached. What training has to keep is its parameters and buffers."""

    METHOD: ClassVar[str]


class Wrapper(Attachment, ABC):
    """A layer with something around it, which can be folded into the layer's own tensors.

    Where several wrap one layer, the one with the greater `DEPTH` is further inside.
    """

    DEPTH: ClassVar[int]

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.host = host

    @abstractmethod
    def forward(self, inputs: Tensor, rows: slice = ALL) -> Tensor:
        """The outputs `rows` of the layer, changed."""

    @abstractmethod
    def fold(self, layer: nn.Module) -> None:
        """Change the plain layer's tensors so that it does what it does inside this wrapper."""

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The host as a plain layer, with every wrapper folded in from the inside out."""
        layer = self.host.merged() if isinstance(self.host, Wrapper) else self.host
        self.fold(layer)
        return layer


def wrap(block: Block, slot: str, depth: int, make: Callable[[nn.Module], Wrapper]) -> None:
    """Put a wrapper of this depth around what is in the block's slot, in the forward order."""
    path, _, name = slot.rpartition(".")
    parent = block.get_submodule(path)
    while isinstance(child := parent.get_submodule(name), Wrapper) and depth > child.DEPTH:
        parent, name = child, "host"
    setattr(parent, name, make(child))


def unwrap(block: Block) -> None:
    """Fold every wrapper of a block into the layer inside it."""
    for slot in (slot for slots in SLOTS.values() for slot in slots):
        path, _, name = slot.rpartition(".")
        parent = block.get_submodule(path)
        child = parent.get_submodule(name)
        if isinstance(child, Wrapper):
            setattr(parent, name, child.merged())


def innermost(layer: nn.Module) -> nn.Module:
    while isinstance(layer, Wrapper):
        layer = layer.host
    return layer
