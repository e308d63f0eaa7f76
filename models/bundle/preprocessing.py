"""How an image becomes a canvas and a canvas becomes views, as the weights ask for it."""

from typing import Literal

from pydantic import Field

from models.bundle.record import Record


class Preprocessing(Record):
    """`size` S and `expand` are in pixels; `mean` and `std` are per RGB channel on a 0 to 1 scale
    and are applied inside the graph.
    """

    size: int = Field(gt=0)
    expand: int = Field(ge=0)
    interpolation: Literal["bilinear", "bicubic"]
    antialias: Literal[True] = True
    resize_mode: Literal["shortest", "squash"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
