"""Pixels to logits: normalisation, tower and head in one module, the graph that is exported."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from taillift.models.errors import UserError
from taillift.models.lift.head import Head
from taillift.models.lift.tower import Tower
from taillift.models.lift.tuners.base import Attachment

# A protocol buffer holds at most 2 GiB, and the graph itself takes a little of that.
GRAPH_BYTES: Final = 2**31 - 2**24


def check_graph_size(module: nn.Module) -> None:
    """Raise `UserError` if the weights of `module`, float32, are too large for one ONNX file."""
    size = sum(4 * tensor.numel() for tensor in module.state_dict().values())
    if size > GRAPH_BYTES:
        raise UserError(
            f"the model has {size / 1e9:.1f} GB of weights, and one ONNX file holds at most "
            f"{GRAPH_BYTES / 1e9:.1f} GB: take a smaller backbone"
        )


class Normalise(nn.Module):
    """uint8 [N, S, S, 3] to float [N, 3, S, S], (x / 255 - mean) / std for each channel."""

    factor: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        means, deviations = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("factor", 1 / (255 * deviations))
        self.register_buffer("shift", -means / deviations)

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() * self.factor + self.shift).permute(0, 3, 1, 2)


class Model(nn.Module):
    """`pixels` uint8 [N, S, S, 3] to `logits` [N, C] and unit `features` [N, D]."""

    def __init__(self, normalise: Normalise, tower: Tower, head: Head) -> None:
        super().__init__()
        self.normalise = normalise
        self.tower = tower
        self.head = head

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor] = self.head(self.tower(self.normalise(pixels)))
        return outputs

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that training changes, by name."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        }

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that restore this model from its backbone, by name.

        These are the trained parameters, and tensors that a tuner drew once, such as the indices
        of sparse tuning.
        """
        drawn = {
            f"{name}.{key}": buffer
            for name, module in self.named_modules()
            if isinstance(module, Attachment)
            for key, buffer in module.named_buffers(recurse=False)
        }
        return {**self.trained(), **drawn}

    @property
    def trainable_parameters(self) -> int:
        """The number of trained weights."""
        return sum(parameter.numel() for parameter in self.trained().values())
