"""Merging: folding the attached tuners into plain weights, as far as the algebra allows it."""

import copy
from collections.abc import Iterator

import torch
from torch import nn

from taillift.models.lift.model import Model
from taillift.models.lift.tuners.base import Attachment, Wrapper
from taillift.models.lift.vit import Block


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
