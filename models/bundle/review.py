"""Which answers can be taken as they are, and which a person should look at."""

import math
from typing import Literal

from pydantic import Field

from taillift.models.bundle.schema import Count, Group, Percent, SchemaModel, Share, SixDigits

Decision = Literal["accept", "review"]


class DecisionReason(SchemaModel):
    """The reason of a decision: how an answer stands to the threshold of its group."""

    kind: Literal["accepted", "below threshold", "no threshold"]
    group: Group = Field(description="of the predicted class")
    threshold: SixDigits | None = Field(
        description="the least confidence that is accepted; null: none"
    )
    photos: int | None = Field(
        description="held-out photos behind the threshold, answered with a class of the group; "
        "null if the bundle does not say"
    )
    text: str = Field(description="the reason in words")

    @property
    def decision(self) -> Decision:
        """The decision that follows."""
        return "accept" if self.kind == "accepted" else "review"


class GroupReview(SchemaModel):
    """The threshold for answers of one group's classes; photos of every class weigh the same."""

    photos: Count = Field(
        description="held-out photos that are answered with a class of this group"
    )
    threshold: Share | None = Field(
        description="the least confidence that is accepted; absent: everything goes to review"
    )
    certified: bool = Field(
        description="the errors stay within the risk; otherwise that is an estimate"
    )
    accepted: Percent = Field(description="per cent of the held-out answers")
    error: Percent | None = Field(description="per cent of the accepted answers")
    fitted_photos: Count | None = Field(
        None, description="the photos, counted likewise, that the threshold was fitted on"
    )


class Review(SchemaModel):
    """Thresholds on the confidence under the uniform prior, at the same risk in every group."""

    risk: Percent = Field(description="per cent of accepted answers that may be wrong")
    level: Percent = Field(description="per cent: how sure a certified threshold is")
    data: str = Field(description="what the shares and errors were measured on")
    groups: dict[Group, GroupReview] = Field(description="by the group of the predicted class")
    notes: tuple[str, ...] = Field((), description="what there were too few photos for")

    def decide(self, confidence: float, group: Group) -> Decision:
        """Decide on an answer by its `confidence`, 0 to 1, and the `group` of its class."""
        return self.explain(confidence, group).decision

    def explain(self, confidence: float, group: Group) -> DecisionReason:
        """Return the reason of the decision on an answer; its arguments are those of `decide`."""
        review = self.groups.get(group)
        photos = review.fitted_photos if review else 0
        if review is None or review.threshold is None:
            return DecisionReason(
                kind="no threshold",
                group=group,
                threshold=None,
                photos=photos,
                text=f"no threshold for the group {group}, because {_held_out(photos)} from which "
                f"confidence at most {self.risk:g} % of such answers are wrong",
            )
        accepted = confidence >= review.threshold
        place = "reaches" if accepted else "is below"
        return DecisionReason(
            kind="accepted" if accepted else "below threshold",
            group=group,
            threshold=review.threshold,
            photos=photos,
            text=f"its confidence {place} the threshold of the group {group}, "
            f"{_percent(review.threshold)}",
        )


def _held_out(photos: int | None) -> str:
    if photos is None:
        return "the held-out photos do not show"
    return f"{photos} held-out photo{' does' if photos == 1 else 's do'} not show"


def _percent(threshold: float) -> str:
    """Write a threshold in per cent, rounded up, so that it never seems to have been reached."""
    hundredths = math.ceil(round(threshold * 10_000, 6))
    return "over 99.99 %" if 1 > threshold > 0.9999 else f"{hundredths / 100:g} %"
