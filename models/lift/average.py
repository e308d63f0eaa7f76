"""Averages: several fine-tunings of one backbone become one model, as large as one of them.

`merge.py` folds the tuners of one model into its own weights. Here the weights of several meet.
"""

import copy
from collections.abc import Iterator

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
from taillift.models.lift.vit import Block

# The methods whose models can be averaged: AdaptFormer, and those that fold into plain weights.
AVERAGED: tuple[type[Tuner], ...] = (AdaptFormer, Bias, Full, LayerNorms, LoRA, SSF, Sparse)


class Average:
    """The average of models that are added one at a time, each with its share; they sum to 1.

    What folds into plain weights is folded first, so that LoRA is averaged by its product and not
    by its factors. The outputs of AdaptFormer's branches are averaged, and a model without one
    gives zero: on the way from LIFT to full fine-tuning, W + share dW and (1 - share) s. The head's
    rows are averaged at unit length. So a share of 1 is that model itself, up to rounding.

    All are built on one backbone and have heads of one kind; their methods are among `AVERAGED`.
    Besides the model that is being added, there are only the sums, in float64.
    """

    def __init__(self, into: Model) -> None:
        """`into` becomes the average: with an AdaptFormer if any has one, of the sum of ranks."""
        self._into = into
        self._sums: dict[str, Tensor] = {}
        # Of each block: its branch, None without one, and how many of its units are taken.
        self._branches = list(map(branch_of, into.tower.blocks))
        self._units = [0] * len(self._branches)
        with torch.no_grad():
            for branch in filter(None, self._branches):
                for parameter in branch.parameters():
                    parameter.zero_()
                for one in (branch.scale, branch.norm.weight):
                    one.fill_(1)

    @torch.no_grad()
    def add(self, model: Model, share: float) -> None:
        """Add a model, which stays as it is."""
        tower, branches = taken_apart(model)
        tensors: dict[str, Tensor] = {
            f"tower.{name}": tensor for name, tensor in tower.named_parameters()
        }
        tensors |= {f"head.{name}": rows for name, rows in averaged_head(model.head)}
        for name, tensor in tensors.items():
            term = share * tensor.double()
            self._sums[name] = self._sums[name].add_(term) if name in self._sums else term
        for number, (branch, into) in enumerate(zip(branches, self._branches, strict=True)):
            if branch is not None and into is not None:
                join(branch, share, into, self._units[number])
                self._units[number] += branch.down.out_features

    @torch.no_grad()
    def finish(self) -> Model:
        """Return the average of what was added."""
        for name, total in self._sums.items():
            self._into.get_parameter(name).copy_(total)
        return self._into


def taken_apart(model: Model) -> tuple[nn.Module, list[AdaptFormerBranch | None]]:
    """Return a copy of the tower in plain weights alone, and the branch of each block."""
    tower = copy.deepcopy(model.tower)
    branches = list(map(branch_of, tower.blocks))
    for block in tower.blocks:
        block.beside_mlp = nn.ModuleList()
        merge_block(block)
    return tower, branches


def branch_of(block: Block) -> AdaptFormerBranch | None:
    """Return the branch of AdaptFormer in a block; None without one."""
    own = [part for part in block.beside_mlp if isinstance(part, AdaptFormerBranch)]
    return own[0] if own else None


def join(branch: AdaptFormerBranch, share: float, into: AdaptFormerBranch, start: int) -> None:
    """Add the share of a branch's outputs to those of `into`, as its hidden units from `start` on.

    A single one only has its scale changed. Of several, the hidden units stand next to each other:
    their norms normalise the same vector, so that the affine part of each moves into its units.
    """
    width = branch.down.out_features
    if width == into.down.out_features:
        into.load_state_dict(branch.state_dict())
        into.scale.mul_(share)
        return
    units = slice(start, start + width)
    down, factor = branch.down.weight.double(), share * branch.scale.double()
    into.down.weight[units] = (down * branch.norm.weight).float()
    into.down.bias[units] = (branch.down.bias + down @ branch.norm.bias.double()).float()
    into.up.weight[:, units] = (factor * branch.up.weight).float()
    into.up.bias.add_((factor * branch.up.bias).float())


def averaged_head(head: Head) -> Iterator[tuple[str, Tensor]]:
    """Yield what is averaged of a head; rows that are used at unit length have it."""
    unit = isinstance(head, CosineHead | L2Head)
    for name, parameter in head.named_parameters():
        is_rows = unit and name == "weight"
        yield name, F.normalize(parameter.double(), dim=-1) if is_rows else parameter
