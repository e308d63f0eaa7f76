"""The stages of CLIP's ResNets (Radford et al. 2021, section 2.4): stem, four layers, pooling.

The modules have the same names as open_clip's, so that their tensors load without renaming.
"""

from collections import OrderedDict
from typing import Final

import torch
from torch import Tensor, nn

from taillift.models.lift.vit import attend

# Side in pixels of the image area for one cell of the last layer's grid.
STRIDE: Final = 32


class Stem(nn.Sequential):
    """Three convolutions and a mean over 2 x 2: float [N, 3, S, S] to [N, W, S / 4, S / 4]."""

    def __init__(self, width: int) -> None:
        shapes = [(3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1)]
        named: list[tuple[str, nn.Module]] = []
        for index, (inside, outside, stride) in enumerate(shapes, start=1):
            convolution = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
            named.append((f"conv{index}", convolution))
            named.append((f"bn{index}", nn.BatchNorm2d(outside)))
            named.append((f"act{index}", nn.ReLU()))
        super().__init__(OrderedDict([*named, ("avgpool", nn.AvgPool2d(2))]))


class ResidualBottleneck(nn.Module):
    """A residual block of three convolutions, [N, I, H, H] to [N, O, H / stride, H / stride].

    A stride is a mean over the grid, after the second convolution and in the shortcut. The shortcut
    has a convolution of its own if the stride or the number of channels changes.
    """

    def __init__(self, inside: int, middle: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.act = nn.ReLU()
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inside != outside:
            shortcut = nn.Conv2d(inside, outside, 1, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outside))

    def forward(self, grid: Tensor) -> Tensor:
        mixed = self.act(self.bn1(self.conv1(grid)))
        mixed = self.pool(self.act(self.bn2(self.conv2(mixed))))
        mixed = self.bn3(self.conv3(mixed))
        summed: Tensor = self.act(mixed + self.downsample(self.pool(grid)))
        return summed


class Layer(nn.Sequential):
    """The bottlenecks of one resolution: a stage of the tower."""


class GridPool(nn.Module):
    """Attention of a grid's mean over its cells: [N, D, H, H] to [N, E], the space of text."""

    def __init__(self, width: int, cells: int, heads: int, outside: int) -> None:
        """Make it for `width` D, `cells` H * H and `outside` E."""
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(1 + cells, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, outside)

    def forward(self, grid: Tensor) -> Tensor:
        cells = grid.flatten(2).transpose(1, 2)
        rows = torch.cat([cells.mean(1, keepdim=True), cells], dim=1) + self.positional_embedding
        mixed = attend(self.q_proj(rows[:, :1]), self.k_proj(rows), self.v_proj(rows), self.heads)
        pooled: Tensor = self.c_proj(mixed[:, 0])
        return pooled
