"""Attached tuners as plain weights, as far as the algebra goes."""

from typing import Final, Literal

import torch
from torch import nn

from taillift.models.lift.block import Block
from taillift.models.lift.tuners.adaptformer import AdaptFormerBranch, use_host_activation
from taillift.models.lift.tuners.base import Attachment, unwrap
from taillift.models.lift.tuners.bottleneck import Bottleneck

Activation = Literal["split", "single"]
# Large enough that only float32 round-off is left, and far from overflow.
GAIN: Final = 2.0**14


def merge_block(block: Block, activation: Activation) -> None:
    """Fold what is attached to the block into its own tensors.

    LoRA, SSF and sparse entries go into the weights they belong to, a block's own prompts become
    constant keys and values, and AdaptFormer widens the MLP. Its units stay rectified (`split`),
    or take the host's activation (`single`), which leaves the block's graph as it was and holds
    in float32 only. Shallow prompts and sequential adapters stay; so does an AdaptFormer beside
    such an adapter, which must not see it.
    """
    unwrap(block)
    _freeze_prompts(block)
    if not block.after_mlp:
        _widen_mlp(block)
    for branch in (*block.after_mlp, *block.beside_mlp):
        assert isinstance(branch, Bottleneck)
        branch.absorb_norm()
    if activation == "single":
        use_host_activation(block, GAIN)


def unmerged(module: nn.Module) -> list[str]:
    """The names of the methods that are still attached, in alphabetical order."""
    return sorted({part.METHOD for part in module.modules() if isinstance(part, Attachment)})


@torch.no_grad()
def _freeze_prompts(block: Block) -> None:
    if (prompts := block.prompt_tokens()) is not None:
        block.attention.keep_rows(block.norm1(prompts))
        block.prompts = nn.ModuleList()


def _widen_mlp(block: Block) -> None:
    for branch in block.beside_mlp:
        assert isinstance(branch, AdaptFormerBranch)
        branch.merge(block)
    block.beside_mlp = nn.ModuleList()
