"""How a recipe uses photos without labels: the options of each method.

The methods themselves are in `training.unlabelled`. A new one is a class of options here, its name
in `AnyMethod`, and a teacher there.
"""

from abc import ABC
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


class StrongView(BaseModel):
    """The changes that make a strong view out of a weak one, as RandAugment chooses them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operations: int = Field(2, ge=0, description="changes of each view, of 14 kinds")
    strength: float = Field(10.0, ge=0, le=10, description="largest size of a change, 10: all")
    cutout: float = Field(0.25, ge=0, le=1, description="side of a grey square, in views")


class UnlabelledUse(BaseModel, ABC):
    """A use of unlabelled photos."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Whether it needs class texts, or a cosine head.
    needs_text: ClassVar[bool] = False
    needs_cosine: ClassVar[bool] = False


class SemiSupervision(UnlabelledUse, ABC):
    """Options that all methods with pseudo-labels share.

    Each step takes `ratio` times as many unlabelled photos as labelled ones. The model's guess on
    a weak view of a photo is its pseudo-label if it is accepted, and is taught on a strong view
    with the weight `weight`. With weights of 0, nothing changes.
    """

    ratio: int = Field(7, ge=1, description="unlabelled photos for each labelled one")
    weight: float = Field(1.0, ge=0, description="weight of accepted pseudo-labels")
    strong: StrongView = StrongView()

    @property
    def active(self) -> bool:
        """Whether unlabelled photos affect the training at all."""
        return self.weight > 0


class HeldOutEvidence(BaseModel):
    """Acceptance by what val/ says of the model in every epoch, instead of a threshold (ours).

    A guess is accepted if its prediction set, which has the true class as often as `coverage`
    says in every class, holds nothing else. Pseudo-labels of a class weigh as much as the lower
    bound, at `confidence`, of the precision of such guesses on val/; without any, nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    coverage: float = Field(0.9, ge=0.5, le=0.99, description="of the prediction sets")
    confidence: float = Field(0.9, ge=0.5, lt=1, description="of the bound on the precision")


class SureGuesses(SemiSupervision, ABC):
    """A method with one threshold for all classes, or with evidence from held-out photos."""

    threshold: float = Field(ge=0, le=1)
    evidence: HeldOutEvidence | None = Field(
        None, description="replaces the threshold by prediction sets; needs val/"
    )


class FixMatch(SureGuesses):
    """Pseudo-labels above one threshold (Sohn et al. 2020)."""

    name: Literal["fixmatch"] = "fixmatch"
    threshold: float = Field(0.95, ge=0, le=1, description="least probability of a pseudo-label")


class FreeMatch(SemiSupervision):
    """A threshold for each class that follows the model's confidence (Wang et al. 2023).

    The averages' decay is smaller in the first steps, as in `ema_decay` (ours: the authors train
    for a million steps, in which this makes no difference).
    """

    name: Literal["freematch"] = "freematch"
    decay: float = Field(0.999, ge=0, lt=1, description="decay of the averages of confidence")
    fairness: float = Field(0.001, ge=0, description="weight of the fairness term")


class Loft(SureGuesses):
    """Hard labels for confident photos, soft ones for the others (LoFT, arXiv 2509.09926).

    `foreign` switches the gate of the open world on: a photo that is less sure than that does not
    teach softly. Before training, `zero_shot` drops photos of which zero-shot CLIP is less sure.
    """

    name: Literal["loft"] = "loft"
    threshold: float = Field(0.6, ge=0, le=1, description="least probability of a hard label")
    weight: float = Field(3.0, ge=0, description="weight of hard labels")
    soft_weight: float = Field(0.0, ge=0, description="weight of soft labels")
    foreign: float | None = Field(
        None, ge=0, le=1, description="least probability of a soft label; None: no gate"
    )
    zero_shot: float = Field(
        0.95, ge=0, le=1, description="least zero-shot probability, if `foreign` is given"
    )

    @property
    def active(self) -> bool:
        return self.weight > 0 or self.soft_weight > 0


class FineSsl(SemiSupervision):
    """Margins by the counts of pseudo-labels, and confidence from a head of its own.

    FineSSL, arXiv 2405.11756. The second head is trained on features without gradient, and is not
    a part of the result.
    """

    name: Literal["finessl"] = "finessl"
    ratio: int = Field(1, ge=1, description="unlabelled photos for each labelled one")
    threshold: float = Field(0.7, ge=0, le=1, description="least probability that counts")
    weight: float = Field(3.0, ge=0, description="weight of pseudo-labels")
    margin: float = Field(8.0, ge=0, description="largest margin, in logits")
    smoothing: float = Field(0.5, ge=0, le=1, description="label mass spread by the second head")


class UlFine(SureGuesses):
    """Prototypes that move from texts toward images, fused with the head (arXiv 2505.05062).

    Only the beginning of the paper could be read. It says that a class's prototype moves toward
    its images as far as the model is confident in the class, that an orthogonality term keeps
    prototypes apart, and that two aligned logits are added. All numbers here are ours.
    """

    name: Literal["ulfine"] = "ulfine"
    needs_text = True
    needs_cosine = True

    threshold: float = Field(0.6, ge=0, le=1, description="least probability of a pseudo-label")
    weight: float = Field(3.0, ge=0, description="weight of pseudo-labels")
    move: float = Field(0.1, ge=0, le=1, description="largest move of a prototype in a step")
    momentum: float = Field(0.9, ge=0, lt=1, description="decay of the classes' mean features")
    orthogonality: float = Field(0.1, ge=0, description="how strongly prototypes repel each other")
    share: float = Field(0.5, gt=0, lt=1, description="share of the prototypes in the logits")


class RightLabels(UnlabelledUse):
    """The truth of unlabelled photos, to compare: what labelling `photos` of them would bring.

    They are drawn by the seed, and trained on as labelled photos are. It needs a source that gives
    the truth.
    """

    name: Literal["right-labels"] = "right-labels"
    photos: int | None = Field(None, ge=1, description="photos to draw; None: all of known class")


AnyMethod = Annotated[
    FixMatch | FreeMatch | Loft | FineSsl | UlFine | RightLabels, Field(discriminator="name")
]
