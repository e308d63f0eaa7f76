"""Temperatures that make confidence mean how often an answer is right."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from taillift.models.bundle.arrays import Doubles, Floats, Indices
from taillift.models.bundle.ensemble import Ensemble, Views
from taillift.models.bundle.images import VIEWS
from taillift.models.bundle.schema import GROUPS, Amount, Count, Group, SchemaModel

Temperature = Annotated[float, Field(ge=0.01, le=100)]


class Temperatures(SchemaModel):
    """The temperatures of one kind of answer: over all photos, and by group.

    The group is that of the predicted class.
    """

    pooled: Temperature
    groups: dict[Group, Temperature] = Field(
        description="shrunk toward the pooled one if photos are few"
    )

    @property
    def row(self) -> list[float]:
        """The temperature of each group, in the order of `GROUPS`."""
        return [self.groups.get(group, self.pooled) for group in GROUPS]


class ErrorChange(SchemaModel):
    """Calibration error in points, at temperature 1 and as calibrated.

    It is the root mean square gap between confidence and accuracy over bins, less the part that
    chance alone makes with so few photos (Kumar et al. 2019, section 5). Next to it stands the
    expected calibration error (ECE, Guo et al. 2017, equation 3): the mean absolute gap, which
    includes chance.
    """

    photos: Count = Field(description="photos that the model answers with a class of this group")
    before: Amount | None = Field(description="absent if there are too few photos to say")
    after: Amount | None
    resolution: Amount | None = Field(
        description="minimum detectable error in points, with so many photos (at 95 %)"
    )
    ece_before: Amount | None = Field(
        None, description="ECE over 15 bins of equal mass; chance alone makes it more than 0"
    )
    ece_after: Amount | None = None

    @property
    def enough(self) -> bool:
        """Whether half of the error at temperature 1 could be detected."""
        if self.before is None or self.resolution is None:
            return False
        return self.before / 2 >= self.resolution


class ErrorChanges(SchemaModel):
    overall: ErrorChange
    groups: dict[Group, ErrorChange] = Field(description="by the group of the predicted class")


class CalibrationErrors(SchemaModel):
    """Each ensemble's calibration error before and after; all classes weigh the same."""

    data: str = Field(description="what it was measured on")
    off: ErrorChanges
    full: ErrorChanges
    adaptive: ErrorChanges | None = None
    notes: tuple[str, ...] = Field((), description="which groups have too few photos to say")


class Calibration(SchemaModel):
    """Softmax temperatures for each ensemble.

    Images that an adaptive ensemble stops early differ from the others, so it has temperatures for
    each number of views.
    """

    off: Temperatures = Field(description="the centre view of every image")
    full: Temperatures = Field(description="all views of every image")
    adaptive: dict[Views, Temperatures] = Field({}, description="by the views that an image took")
    data: str = Field(description="what it was fitted on")
    source: Literal["validation", "cross-fitting"]
    images: Count = Field(description="the number of images that it was fitted on")
    unproved: tuple[Ensemble, ...] = Field(
        (),
        description="ensembles whose temperatures stay 1: no others were shown to be better",
    )
    errors: CalibrationErrors | None = None
    notes: tuple[str, ...] = Field((), description="what the data were too few or too odd for")

    def temperatures(
        self, logits: Floats, views: Indices, ensemble: Ensemble, groups: Indices
    ) -> Doubles:
        """Return the temperature [N] of each image's mean logits [N, C] over `views` [N].

        `groups` [C] are the `group_indices`. A number of views that calibration has not met has the
        temperature of the nearest number that it has met.
        """
        fitted = {
            Ensemble.OFF: {1: self.off},
            Ensemble.FULL: {VIEWS: self.full},
            Ensemble.ADAPTIVE: self.adaptive or {1: self.off, VIEWS: self.full},
        }[ensemble]
        table = np.array(
            [
                fitted[min(fitted, key=lambda views: abs(views - count))].row
                for count in range(1, VIEWS + 1)
            ]
        )
        row: Doubles = table[views - 1, groups[logits.argmax(axis=1)]]
        return row
