"""Averages: several fine-tunings of one backbone become one model, as large as one of them.

`merge.py` folds the tuners of one model into its own weights. Here the weights of several meet.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taillift.models.lift.head import CosineHead, Head, L2Head
from taillift.models.lift.model import Model, merge_block
from taillift.models.lift.tuners import (
    SSF,
    AdaptFormer,
    Bias,
    Full,
    LayerNorms,
    LoRA,
    Sparse,
    Tuner,
)
from taillift.models.lift.tuners.bottleneck import AdaptFormerBranch

# The methods whose models can be averaged: AdaptFormer, and those that fold into plain weights.
AVERAGED: tuple[type[Tuner], ...] = (AdaptFormer, Bias, Full, LayerNorms, LoRA, SSF, Sparse)


@torch.no_grad()
def average(parents: Sequence[Model], shares: Sequence[float], into: Model) -> None:
    """Make `into` the average of `parents`, weighted by `shares`, which sum to 1.

    What folds into plain weights is folded first, so that LoRA is averaged by its product and not
    by its factors. The outputs of AdaptFormer's branches are averaged, and a parent without one
    gives zero: on the way from LIFT to full fine-tuning, W + share dW and (1 - share) s. The head's
    rows are averaged at unit length. So a share of 1 is that parent itself, up to rounding.

    All are built on one backbone and have heads of one kind; their methods are among `AVERAGED`.
    `into` has an AdaptFormer if a parent has one, with the sum of their ranks.
    """
    towers, branches = zip(*map(taken_apart, parents), strict=True)
    for name, _ in towers[0].named_parameters():
        tensors = [tower.get_parameter(name) for tower in towers]
        into.tower.get_parameter(name).copy_(weighted(tensors, shares))
    for block, of_parents in zip(into.tower.blocks, zip(*branches, strict=True), strict=True):
        for branch in block.beside_mlp:
            assert isinstance(branch, AdaptFormerBranch)
            join(of_parents, shares, branch)
    average_heads([parent.head for parent in parents], shares, into.head)


def taken_apart(model: Model) -> tuple[nn.Module, list[AdaptFormerBranch | None]]:
    """Return a copy of the tower in plain weights alone, and the branch of each block."""
    tower = copy.deepcopy(model.tower)
    branches = []
    for block in tower.blocks:
        own = [part for part in block.beside_mlp if isinstance(part, AdaptFormerBranch)]
        branches.append(own[0] if own else None)
        block.beside_mlp = nn.ModuleList()
        merge_block(block)
    return tower, branches


def join(
    branches: Sequence[AdaptFormerBranch | None], shares: Sequence[float], into: AdaptFormerBranch
) -> None:
    """Make `into` give the weighted sum of the branches' outputs.

    A single one only has its scale changed. Of several, the hidden units stand next to each other:
    their norms normalise the same vector, so that the affine part of each moves into its units.
    """
    pairs = zip(branches, shares, strict=True)
    present = [(branch, share) for branch, share in pairs if branch is not None]
    if len(present) == 1 and present[0][0].down.out_features == into.down.out_features:
        into.load_state_dict(present[0][0].state_dict())
        into.scale.mul_(present[0][1])
        return
    for parameter in into.parameters():
        parameter.zero_()
    for one in (into.scale, into.norm.weight):
        one.fill_(1)
    start = 0
    for branch, share in present:
        units = slice(start, start := start + branch.down.out_features)
        down, factor = branch.down.weight.double(), share * branch.scale.double()
        into.down.weight[units] = (down * branch.norm.weight).float()
        into.down.bias[units] = (branch.down.bias + down @ branch.norm.bias.double()).float()
        into.up.weight[:, units] = (factor * branch.up.weight).float()
        into.up.bias.add_((factor * branch.up.bias).float())


def average_heads(heads: Sequence[Head], shares: Sequence[float], into: Head) -> None:
    """Make `into` the average of heads of its kind; rows that are used at unit length have it."""
    unit = isinstance(into, CosineHead | L2Head)
    for name, parameter in into.named_parameters():
        tensors: list[Tensor] = [head.get_parameter(name) for head in heads]
        if unit and name == "weight":
            tensors = [F.normalize(rows.double(), dim=-1) for rows in tensors]
        parameter.copy_(weighted(tensors, shares))


def weighted(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the weighted sum of tensors, float64; equal tensors give themselves once rounded."""
    terms = [share * tensor.double() for tensor, share in zip(tensors, shares, strict=True)]
    return torch.stack(terms).sum(0)
