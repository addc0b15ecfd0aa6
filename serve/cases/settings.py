"""Settings of the review queue."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class CaseSettings(BaseModel):
    """Which messages are kept for analysts, where, and how many."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    database: Annotated[str, Field(pattern="^postgresql://.+$")] | None = Field(default=None, repr=False)
    """postgresql://USER:PASSWORD@HOST/NAME for several machines; by default cases.sqlite next to the known wordings."""
    days: Annotated[float, Field(gt=0, le=365)] = 7.0
    """How long an undecided case is kept after its last message, and texts, senders and receivers of any case."""
    cases: Annotated[int, Field(ge=1)] = 100_000
    """Most undecided cases; the least harmful make room."""
    texts: Annotated[int, Field(ge=1, le=20)] = 5
    """Most different texts of a case."""
    waiting: Annotated[int, Field(ge=1)] = 10_000
    """Most messages that wait to be written, in each worker."""
    block_share: Share = 0.0
    """Share of blocked messages that is kept too, at random, for quality control."""
    pass_share: Share = 0.0
    """The same of messages that pass."""
