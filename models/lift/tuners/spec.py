"""What a fine-tuning method is to a recipe: a name, a few options, and one verb."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import nn

from models import UserError
from models.lift.block import Block

Option = TypeVar("Option")


class Spec(BaseModel, ABC):
    """One method's options. `name` tells the methods apart; an option that is None is adaptive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str

    def resolved(self, classes: int, blocks: int, width: int) -> Self:
        """With every adaptive option settled for C classes, L tuned blocks and tokens of D."""
        del classes, blocks, width
        return self

    @abstractmethod
    def attach(self, blocks: Sequence[nn.Module]) -> None:
        """Put the method into a tower's last stages and unfreeze what it trains.

        Raises `UserError` where the stages have no place for it, and `ValueError` where an
        adaptive option is not settled yet.
        """


def transformer_blocks(method: str, stages: Sequence[nn.Module]) -> list[Block]:
    """The stages as blocks; raises `UserError` where one is none."""
    blocks = [stage for stage in stages if isinstance(stage, Block)]
    if not blocks or len(blocks) < len(stages):
        raise UserError(
            f"{method} needs transformer blocks, which this backbone, a ResNet, does not have: "
            "tune bias, norm or full"
        )
    return blocks


def settled(option: Option | None, method: str) -> Option:
    if option is None:
        raise ValueError(f"{method} has an adaptive option: call resolved() first")
    return option


def adaptive_rank(classes: int, blocks: int) -> int:
    """2 ** max(0, floor(log2(C / 2L))): the bottlenecks get no more weights than the head.

    LIFT, section 3.3.
    """
    return power_of_two(classes / (2 * blocks))


def power_of_two(most: float) -> int:
    """The greatest power of two up to `most`, but at least 1."""
    return int(2 ** max(0, math.floor(math.log2(most))))
