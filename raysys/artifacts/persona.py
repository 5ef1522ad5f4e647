"""What a model with explicit personas says about a score."""

from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EntityPart(_Frozen):
    """An entity of the persona and what it adds to the score of a candidate.

    weight: its share π in the persona; clicks: the news behind it, newest first; match: whether the
    candidate names it.
    """

    id: str
    label: str | None
    type: str | None
    weight: float
    contribution: float
    clicks: tuple[str, ...]
    match: bool


class PersonaExplanation(_Frozen):
    """The score of a candidate in parts: Σ contributions + latent + default.

    latent: of the clicks as a whole; default: of what the model assumes about users without clicks
    or entities; gate: the persona's share in [0, 1].
    """

    entities: tuple[EntityPart, ...]
    latent: float
    default: float
    gate: float
