"""Methods that attach no module: they train some of the tower's own tensors."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from taillift.models.errors import UserError
from taillift.models.lift.tuners.base import Tuner


class Bias(Tuner):
    """Every bias inside the blocks (BitFit, Ben Zaken et al. 2022)."""

    name: Literal["bias"] = "bias"

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        unfreeze(self.name, [module for block in blocks for module in block.modules()], ("bias",))


class LayerNorms(Tuner):
    """Scale and shift of every LayerNorm inside the blocks; in a ResNet, of every BatchNorm.

    A BatchNorm keeps its running statistics, because `Tower.train` leaves it in evaluation mode.
    """

    name: Literal["norm"] = "norm"

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        norms = [
            module
            for block in blocks
            for module in block.modules()
            if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
        ]
        unfreeze(self.name, norms, ("weight", "bias"))


class Full(Tuner):
    """Every tensor of the blocks."""

    name: Literal["full"] = "full"

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        for block in blocks:
            block.requires_grad_(True)


def unfreeze(method: str, modules: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Train the modules' own parameters of these names; raises `UserError` if there are none."""
    parameters = [
        parameter
        for module in modules
        for name, parameter in module.named_parameters(recurse=False)
        if name in names
    ]
    if not parameters:
        raise UserError(f"{method} finds nothing to train in this backbone: take another method")
    for parameter in parameters:
        parameter.requires_grad_(True)
