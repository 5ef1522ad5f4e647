"""What a back-end gives for one document."""

from dataclasses import dataclass

from raysys.hkfr.knowledge import Knowledge


@dataclass(frozen=True)
class Reply:
    """Knowledge, or why there is none.

    lasting: whether asking again another night would give the same; calls, tokens: what a model
    was asked, and how much it read and wrote.
    """

    knowledge: Knowledge | None
    why: str = ""
    lasting: bool = True
    calls: int = 0
    tokens: int = 0
