"""Losses for long-tailed training."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LogitAdjusted(nn.Module):
    """Cross-entropy of logits + tau log(prior) (Menon et al. 2021, equation 10).

    It teaches logits that are right where all classes are equally frequent. `counts` are the
    training images of each class; logits are [N, C], labels [N].
    """

    shift: Tensor

    def __init__(self, counts: Sequence[int], tau: float) -> None:
        super().__init__()
        prior = torch.tensor(counts, dtype=torch.float64)
        self.register_buffer("shift", (tau * (prior / prior.sum()).log()).float())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits + self.shift, labels)
