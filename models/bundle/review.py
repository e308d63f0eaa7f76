"""Which answers can be taken as they are, and which a person should look at."""

from typing import Literal

from pydantic import Field

from taillift.models.bundle.schema import Count, Group, Percent, SchemaModel, Share

Decision = Literal["accept", "review"]


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


class Review(SchemaModel):
    """Thresholds on the confidence under the uniform prior, at the same risk in every group."""

    risk: Percent = Field(description="per cent of accepted answers that may be wrong")
    level: Percent = Field(description="per cent: how sure a certified threshold is")
    data: str = Field(description="what the shares and errors were measured on")
    groups: dict[Group, GroupReview] = Field(description="by the group of the predicted class")
    notes: tuple[str, ...] = Field((), description="what there were too few photos for")

    def decide(self, confidence: float, group: Group) -> Decision:
        """Decide on an answer by its `confidence`, 0 to 1, and the `group` of its class."""
        review = self.groups.get(group)
        if review is None or review.threshold is None:
            return "review"
        return "accept" if confidence >= review.threshold else "review"
