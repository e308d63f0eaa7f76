"""Fine-tuning methods, each a `Spec` to put in a recipe and the modules that it attaches.

Several can be attached to the same blocks, in any order.
"""

from typing import Annotated

from pydantic import Field

from models.lift.tuners.adapter import Adapter
from models.lift.tuners.adaptformer import AdaptFormer
from models.lift.tuners.lora import LoRA
from models.lift.tuners.sparse import Sparse
from models.lift.tuners.spec import Spec, adaptive_rank
from models.lift.tuners.ssf import SSF
from models.lift.tuners.unfreeze import Bias, Full, LayerNorms
from models.lift.tuners.vpt import VPTDeep, VPTShallow

Tuner = Annotated[
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
    "Spec",
    "Tuner",
    "VPTDeep",
    "VPTShallow",
    "adaptive_rank",
]
