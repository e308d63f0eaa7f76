"""Pixels to logits: normalisation, tower and head in one module, the graph that is exported.

`merge` folds the attached tuners into plain weights, as far as the algebra allows it.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from taillift.models.errors import UserError
from taillift.models.lift.head import Head
from taillift.models.lift.tower import Tower
from taillift.models.lift.tuners.base import Attachment, Wrapper
from taillift.models.lift.vit import Block

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


def merge(model: Model) -> Model:
    """Return a copy with the same outputs, its tuners folded into the tower, and a plain head.

    An attachment that cannot be merged stays as it is; `unmerged` names its method.
    """
    merged = copy.deepcopy(model)
    for block in merged.tower.blocks:
        merge_block(block)
    merged.head = merged.head.merged()
    return merged.eval().requires_grad_(False)


@torch.no_grad()
def merge_block(block: Block) -> None:
    """Fold what is attached to the block into its own tensors; what cannot be folded stays."""
    # Wrappers go first, from the inside out: the other attachments fold into plain layers.
    for attachment in sorted(attachments(block), key=lambda part: not isinstance(part, Wrapper)):
        if not attachment.merge(block):
            continue
        path = next(name for name, module in block.named_modules() if module is attachment)
        parent_path, _, name = path.rpartition(".")
        parent = block.get_submodule(parent_path)
        if isinstance(attachment, Wrapper):
            setattr(parent, name, attachment.host)
        else:
            assert isinstance(parent, nn.ModuleList)
            del parent[int(name)]


def attachments(module: nn.Module) -> Iterator[Attachment]:
    """Yield the attached modules; of nested wrappers the inner one comes first."""
    for child in module.children():
        yield from attachments(child)
    if isinstance(module, Attachment):
        yield module


def unmerged(module: nn.Module) -> list[str]:
    """Return the names of the methods that are still attached, in alphabetical order."""
    return sorted({attachment.METHOD for attachment in attachments(module)})
