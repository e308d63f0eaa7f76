"""What a method leaves in a block: a module beside its parts, or a wrapper around one of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from models.lift.block import ALL, Block

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
