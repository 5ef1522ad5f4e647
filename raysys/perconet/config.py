"""Options of PerCoNet. The paper gives ideas and no values: all defaults are ours."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysys.news.entities import EntityFit, EntityOptions
from raysys.news.words import WordOptions

Count = Annotated[int, Field(ge=1)]
Fusion = Literal["attn", "title", "abstract", "concat_vec", "concat_text"]
Prominence = Literal["all", "count", "recency", "idf", "confidence", "learned", "even"]
UserKind = Literal["gated", "persona", "latent", "sum"]
Placebo = Literal["shuffled", "popular"]
# The vector fields that a way of fusing reads.
FIELDS: dict[Fusion, tuple[str, ...]] = {
    "attn": ("title", "abstract"),
    "title": ("title",),
    "abstract": ("abstract",),
    "concat_vec": ("title", "abstract"),
    "concat_text": ("title_abstract",),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ContrastOptions(_Frozen):
    """λ·L_cl with temperature τ over vectors of `width` numbers.

    views: the title against the abstract, or, a control, the title against itself under another
    dropout mask.
    """

    weight: Annotated[float, Field(ge=0)] = 0.1  # λ
    temperature: Annotated[float, Field(gt=0)] = 0.1  # τ
    width: Count = 128
    views: Literal["cross", "dropout"] = "cross"


class PersonaOptions(EntityOptions):
    """The persona: the most prominent entities of the newest clicks.

    clicks, size: L_p and K. half_life: of a click, in clicks. prominence: which of idf, recency
    and the annotation's confidence count beside the number of clicks; learned: all three, their
    exponents being weights; even: every entity alike (a control). eta: how much the candidate
    decides which entities count, 0: not at all. match: an entity that the candidate names adds a
    learned number too, beside what its vector adds. retention_days: older clicks do not count;
    those without a time have no age and do. act: tanh makes p = tanh(Σ a_e W e). placebo: what
    must not win: the persona of another user with about as many clicks, or that of all users
    together.
    """

    clicks: Count = 50
    size: Count = 20
    half_life: Annotated[float, Field(gt=0)] = 25.0
    prominence: Prominence = "all"
    eta: Annotated[float, Field(ge=0)] = 1.0
    match: bool = True
    retention_days: Annotated[float, Field(gt=0)] | None = None
    act: Literal["linear", "tanh"] = "linear"
    placebo: Placebo | None = None
    placebo_seed: Annotated[int, Field(ge=0)] = 0


class PerconetOptions(_Frozen):
    """Options of `Perconet` that are chosen.

    encoder: news are frozen sentence vectors, or their words read by self-attention (`mhsa`) or
    filters (`cnn`), see `words`. fusion: how title and abstract become one vector; with `title`
    the abstract acts only through the contrastive loss, `concat_text` reads both as one text. user:
    the persona beside the latent vector of the history behind a gate, either of them alone, or
    both scores added. residual: see `NRMSConfig`.
    """

    encoder: Literal["frozen", "mhsa", "cnn"] = "frozen"
    words: WordOptions = WordOptions()
    fusion: Fusion = "attn"
    user: UserKind = "gated"
    width: Count = 256
    heads: Count = 8
    query: Count = 128
    history_length: Count = 50
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    residual: bool = True
    contrast: ContrastOptions = ContrastOptions()
    persona: PersonaOptions = PersonaOptions()

    @model_validator(mode="after")
    def _fits(self) -> "PerconetOptions":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.persona.clicks > self.history_length and self.user != "latent":
            raise ValueError(
                f"persona.clicks {self.persona.clicks} is more than history_length "
                f"{self.history_length}"
            )
        if self.contrast.weight and self.contrast.views == "cross" and self.fusion not in (
            "attn", "title", "concat_vec"
        ):  # fmt: skip
            raise ValueError(
                f"contrast.weight: fusion={self.fusion} has no two views to compare; set it to 0"
            )
        if self.contrast.weight and self.contrast.views == "dropout" and not self.dropout:
            raise ValueError("contrast.views=dropout compares nothing with dropout=0")
        return self

    @property
    def vectors(self) -> tuple[str, ...]:
        """The frozen vectors of news that are read."""
        return self.fields if self.encoder == "frozen" else ()

    @property
    def fields(self) -> tuple[str, ...]:
        """The texts of news that are read."""
        found = FIELDS[self.fusion]
        contrast = self.contrast
        if contrast.weight:
            wanted = ("title", "abstract") if contrast.views == "cross" else ("title",)
            found += tuple(name for name in wanted if name not in found)
        return found


class PerconetConfig(PerconetOptions):
    """Options of `Perconet`, settled."""

    # Runs that were saved before there was the option did without.
    residual: bool = False
    fitted: EntityFit | None  # None: a latent user has no entities
    fitted_words: int | None = None  # how many words there are, where words are read
