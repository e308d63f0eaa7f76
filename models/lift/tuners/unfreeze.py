"""Methods that add nothing: they train some of the tower's own tensors."""

from collections.abc import Iterator, Sequence
from typing import Literal

from torch import nn

from taillift.models.errors import UserError
from taillift.models.lift.tuners.base import Tuner


class Bias(Tuner):
    """Every bias inside the blocks (BitFit, Ben Zaken et al. 2022)."""

    name: Literal["bias"] = "bias"

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        _unfreeze(self.name, [module for block in blocks for module in block.modules()], ("bias",))


class LayerNorms(Tuner):
    """Scale and shift of every LayerNorm inside the blocks; in a ResNet, of every BatchNorm.

    A BatchNorm keeps its running statistics, as long as the model is in evaluation mode.
    """

    name: Literal["norm"] = "norm"

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        _unfreeze(self.name, list(_norms(blocks)), ("weight", "bias"))


class Full(Tuner):
    """Every tensor of the blocks."""

    name: Literal["full"] = "full"

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        for block in blocks:
            block.requires_grad_(True)


def _norms(blocks: Sequence[nn.Module]) -> Iterator[nn.Module]:
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                yield module


def _unfreeze(method: str, modules: Sequence[nn.Module], names: Sequence[str]) -> None:
    found = [
        parameter
        for module in modules
        for name, parameter in module.named_parameters(recurse=False)
        if name in names
    ]
    if not found:
        raise UserError(f"{method} finds nothing to train in this backbone: take another method")
    for parameter in found:
        parameter.requires_grad_(True)
