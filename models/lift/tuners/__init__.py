"""The fine-tuning methods. A recipe names them, and several can be attached to the same blocks.

The order of attaching does not matter. A new method is a file here, with a `Tuner` and the modules
that it attaches, and an entry in this file.
"""

from typing import Annotated

from pydantic import Field

from taillift.models.lift.tuners.base import Tuner, adaptive_rank
from taillift.models.lift.tuners.bottleneck import Adapter, AdaptFormer
from taillift.models.lift.tuners.lora import LoRA
from taillift.models.lift.tuners.sparse import Sparse
from taillift.models.lift.tuners.ssf import SSF
from taillift.models.lift.tuners.unfreeze import Bias, Full, LayerNorms
from taillift.models.lift.tuners.vpt import VPTDeep, VPTShallow

AnyTuner = Annotated[
    AdaptFormer | Adapter | LoRA | VPTShallow | VPTDeep | SSF | Bias | LayerNorms | Sparse | Full,
    Field(discriminator="name"),
]

__all__ = [
    "SSF",
    "AdaptFormer",
    "Adapter",
    "Bias",
    "Full",
    "LayerNorms",
    "LoRA",
    "Sparse",
    "Tuner",
    "VPTDeep",
    "VPTShallow",
    "adaptive_rank",
]
