"""The base of everything that a manifest holds, and the words that its parts share."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

Group = Literal["many", "medium", "few"]
GROUPS: tuple[Group, ...] = get_args(Group)


class Record(BaseModel):
    """Immutable, and no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")
