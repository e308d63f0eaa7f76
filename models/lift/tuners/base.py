"""The two halves of a fine-tuning method: its options (`Tuner`) and the modules it attaches.

A method is in one file and has three verbs: `Tuner.resolved` settles its adaptive options,
`Tuner.attach` puts its modules into a tower, and `Attachment.merge` folds them into the tower's
weights.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from taillift.models.errors import UserError
from taillift.models.lift.vit import ALL, Block

Option = TypeVar("Option")

# The layers of a block that a wrapper can go around, by the part that a method is restricted to.
SLOTS: Final = {
    "attention": ("attention.qkv", "attention.proj"),
    "mlp": ("mlp.fc1", "mlp.fc2"),
    "norm": ("norm1", "norm2"),
}


class Tuner(BaseModel, ABC):
    """The options of one method. An option that is None is adaptive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str

    def resolved(self, classes: int, blocks: int, width: int) -> Self:
        """Return a copy with every adaptive option set for C classes, L blocks and D-wide tokens.

        L counts only the blocks that are tuned.
        """
        del classes, blocks, width
        return self

    @abstractmethod
    def attach(self, blocks: Sequence[nn.Module]) -> None:
        """Put the method into the last stages of a tower, and unfreeze what it trains.

        Raises `UserError` if the stages have no place for it, and `ValueError` if an adaptive
        option has not been set by `resolved`.
        """


class Attachment(nn.Module, ABC):
    """A module that a method attaches. Training has to keep its parameters and buffers."""

    METHOD: ClassVar[str]

    @abstractmethod
    def merge(self, block: Block) -> bool:
        """Fold this module into the block's own tensors; return whether that was possible.

        `merge_block` calls it without gradients, after all wrappers of the block are folded. It
        then removes the module if the answer is True, and keeps it otherwise.
        """


class Wrapper(Attachment, ABC):
    """A module around a layer, which can be folded into the layer's own tensors.

    If several wrap one layer, the one with the greater `DEPTH` is further inside.
    """

    DEPTH: ClassVar[int]

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.host = host

    @abstractmethod
    def forward(self, inputs: Tensor, rows: slice = ALL) -> Tensor:
        """Return the outputs `rows` of the tuned layer."""

    @abstractmethod
    def fold(self, layer: nn.Module) -> None:
        """Change the plain layer's tensors so that it gives what this wrapper around it gives."""

    def merge(self, block: Block) -> bool:
        del block
        self.fold(self.host)
        return True


def wrap(block: Block, slot: str, depth: int, make: Callable[[nn.Module], Wrapper]) -> None:
    """Put a wrapper of this depth around the layer in the block's slot.

    It goes inside the wrappers of a smaller depth that are there already.
    """
    path, _, name = slot.rpartition(".")
    parent = block.get_submodule(path)
    while isinstance(child := parent.get_submodule(name), Wrapper) and depth > child.DEPTH:
        parent, name = child, "host"
    setattr(parent, name, make(child))


def innermost(layer: nn.Module) -> nn.Module:
    """Return the plain layer inside any wrappers."""
    while isinstance(layer, Wrapper):
        layer = layer.host
    return layer


def transformer_blocks(method: str, stages: Sequence[nn.Module]) -> list[Block]:
    """Return the stages as blocks; raises `UserError` if one of them is something else."""
    blocks = [stage for stage in stages if isinstance(stage, Block)]
    if not blocks or len(blocks) < len(stages):
        raise UserError(
            f"{method} needs transformer blocks, and this backbone, a ResNet, has none: "
            "tune bias, norm or full"
        )
    return blocks


def require_resolved(option: Option | None, method: str) -> Option:
    """Return the option; raises `ValueError` if it is still adaptive."""
    if option is None:
        raise ValueError(f"{method} has an adaptive option: call resolved() first")
    return option


def adaptive_rank(classes: int, blocks: int) -> int:
    """Return 2 ** max(0, floor(log2(C / 2L))): all bottlenecks have no more weights than the head.

    LIFT, section 3.3.
    """
    return power_of_two(classes / (2 * blocks))


def power_of_two(most: float) -> int:
    """Return the greatest power of two that is not above `most`, but at least 1."""
    return int(2 ** max(0, math.floor(math.log2(most))))
