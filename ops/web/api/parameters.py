"""What a request of the read API may ask for: one model an address.

A field whose name stands in the path is read from there, every other one from the query.
"""

import re
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from core.messages import Identifier, Name
from core.states import BatchStatus, ClassType, EssayStatus

LONGEST_CURSOR = 1_024  # characters
UUID_TEXT = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"


def _whole(text: object) -> object:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("must be a whole number, written in digits")
    return int(text)


def _yes_or_no(text: object) -> object:
    if text not in {"true", "false"}:
        raise ValueError("must be true or false")
    return text == "true"


Cursor = Annotated[str, Field(min_length=1, max_length=LONGEST_CURSOR)]
Limit = Annotated[int, BeforeValidator(_whole)]
YesOrNo = Annotated[bool, BeforeValidator(_yes_or_no)]


class Parameters(BaseModel):
    """An unknown parameter is refused: a misspelt filter would list everything."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class OfDocument(Parameters):
    pass


class OfBatches(Parameters):
    state: BatchStatus | None = None
    """Only batches in this state."""
    user_id: Name | None = None
    """Only batches of this user, to the letter."""
    org_id: Name | None = None
    """Only batches of this organisation, to the letter."""
    class_type: ClassType | None = None
    """Only guest batches, or only regular ones."""
    stuck: YesOrNo | None = None
    """`true`: only batches that break a rule; `false`: only the others."""
    after: Cursor | None = None
    """The `next` of the page before."""
    limit: Limit = Field(default=50, ge=1, le=200)
    """How many batches a page has at most."""


class OfBatch(Parameters):
    batch_id: Identifier
    """The batch."""


class OfBatchEssays(Parameters):
    batch_id: Identifier
    """The batch."""
    state: EssayStatus | None = None
    """Only essays in this state."""
    after: Identifier | None = None
    """The `next` of the page before, or any essay id: the page begins after it."""
    limit: Limit = Field(default=1_000, ge=1, le=10_000)
    """How many essays a page has at most."""


class OfEssay(Parameters):
    essay_id: Identifier
    """The essay."""
    after: Identifier | None = None
    """The `next` of the page before."""
    limit: Limit = Field(default=50, ge=1, le=200)
    """How many batches a page has at most."""


class OfEvents(Parameters):
    after: Cursor | None = None
    """The `next` of the page before; without it the page begins with the first event."""
    limit: Limit = Field(default=100, ge=1, le=1_000)
    """How many events a page has at most; large events make it shorter."""


class OfMessage(Parameters):
    event_id: Annotated[UUID, Field(json_schema_extra={"pattern": UUID_TEXT})]
    """The `event_id` that the sender gave the message."""
