"""Which answers can be taken as they are, and which a person should look at."""

from typing import Literal

from pydantic import Field

from taillift.models.bundle.schema import Group, SchemaModel

Decision = Literal["accept", "review"]


class GroupReview(SchemaModel):
    """For the answers with a class of one group; photos of every class weigh the same."""

    photos: int = Field(description="held-out photos that are answered with a class of this group")
    threshold: float | None = Field(
        description="the least confidence that is accepted; absent: everything to review"
    )
    certified: bool = Field(description="that errors stay within the risk; else it is an estimate")
    accepted: float = Field(description="per cent of the held-out answers")
    error: float | None = Field(description="per cent of the accepted ones")


class Review(SchemaModel):
    """Thresholds on the confidence under the uniform prior, at the same risk in every group."""

    risk: float = Field(description="per cent of accepted answers that may be wrong")
    level: float = Field(description="per cent: how sure a certified threshold is")
    data: str = Field(description="what shares accepted and errors were measured on")
    groups: dict[Group, GroupReview] = Field(description="of the predicted class")
    notes: tuple[str, ...] = Field((), description="what there were too few photos for")

    def decide(self, confidence: float, group: Group) -> Decision:
        """`confidence` is that of the answer, 0 to 1, and `group` the group of its class."""
        known = self.groups.get(group)
        if known is None or known.threshold is None:
            return "review"
        return "accept" if confidence >= known.threshold else "review"
