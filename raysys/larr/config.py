"""Options of the scene vector (stage 3). All defaults are ours: the paper's are unknown."""

import string
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Placebo = Literal["random_vectors", "permuted_texts", "shuffled_requests"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _slots(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


class _Sentence(_Frozen):
    """template: the sentence, values in braces. version: raised whenever its wording changes,
    because it is part of every vector's key."""

    name: Name
    template: str
    version: Count = 1

    @property
    def template_id(self) -> str:
        """`name@version`."""
        return f"scene.{self.name}@{self.version}"

    def _check(self, wanted: set[str]) -> None:
        if _slots(self.template) != wanted:
            raise ValueError(
                f"{self.name}: the template must name {', '.join(sorted(wanted))} in braces, "
                f"it names {', '.join(sorted(_slots(self.template))) or 'nothing'}"
            )


class ContextSentence(_Sentence):
    """Context features of the request in one sentence; missing where one of them is.

    contexts: their names, e.g. (weekday, mealtime) for "It is {weekday} {mealtime} time."
    """

    kind: Literal["context"] = "context"
    contexts: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_them(self) -> "ContextSentence":
        self._check(set(self.contexts))
        return self


class TasteSentence(_Sentence):
    """What the user has turned to: the mean of the vectors of one sentence per past event.

    source: an item field (see `raysys.data.features`) whose value is said. events: of the newest
    so many; more cannot be had than the ranker is shown.
    """

    kind: Literal["taste"] = "taste"
    source: str
    events: Count = 50

    @model_validator(mode="after")
    def _names_it(self) -> "TasteSentence":
        self._check({"value"})
        return self


class RecentItems(_Frozen):
    """The mean of the text vectors of the newest events' items.

    field: name, title, abstract or text of the items.
    """

    kind: Literal["recent"] = "recent"
    name: Name
    field: Literal["name", "title", "abstract", "text"] = "text"
    events: Count = 10


SceneFeature = Annotated[ContextSentence | TasteSentence | RecentItems, Field(discriminator="kind")]


class EncoderOptions(_Frozen):
    """K vectors → m.

    aggregate: the trainable token's output, the mean of the present features' projections, or an
    MLP on all of them side by side (§5 f). head: hidden width of the MLP from z to m. missing: of a
    feature without a vector; not attended to, or a zero vector that is.
    """

    aggregate: Literal["agg", "mean", "concat"] = "agg"
    layers: Count = 1
    width: Count = 64
    heads: Count = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    head: Count = 64
    missing: Literal["mask", "zero"] = "mask"

    @model_validator(mode="after")
    def _divisible(self) -> "EncoderOptions":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        return self


class AlignmentOptions(_Frozen):
    """η·InfoNCE(m, c) with temperature τ.

    target: c is the clicked item's vector in the ID tower, the mean of the user's past items
    there, or that of items clicked in training in the same scene (`scene_items` of them, drawn).
    gradient: into c; delayed: stopped for the first `stop_share` of the steps.
    """

    weight: Annotated[float, Field(ge=0)] = 0.1  # η
    temperature: Annotated[float, Field(gt=0)] = 0.1  # τ
    target: Literal["clicked", "user", "scene_mean"] = "clicked"
    gradient: Literal["delayed", "always_stop", "open"] = "delayed"
    stop_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    scene_items: Count = 32


class LarrConfig(_Frozen):
    """The scene vector.

    wordings: how a value is told where the data set declares wordings for it: by all of them, the
    first, or as it is. single_pass: all sentences of the context as one text (the control of
    §5 d). use: m in the towers' input and added to the attention's query, in the input only, or
    nowhere (alignment alone). frozen=false: the language model learns with the ranker, in so far as
    it encodes sentences (items keep their vectors); an upper reference, which fills no gaps when it
    serves. training: scene and ranker at once, or ID tower, alignment and
    ranker one after the other. placebo: what must not win.
    """

    features: Annotated[tuple[SceneFeature, ...], Field(min_length=1)]
    wordings: Literal["all", "first", "value"] = "all"
    single_pass: bool = False
    encoder: EncoderOptions = EncoderOptions()
    alignment: AlignmentOptions = AlignmentOptions()
    use: Literal["query", "concat", "none"] = "query"
    training: Literal["joint", "staged"] = "joint"
    frozen: bool = True
    placebo: Placebo | None = None
    placebo_seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _distinct(self) -> "LarrConfig":
        names = [feature.name for feature in self.features]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"features: {twice} is there twice")
        if self.single_pass and not self.sentences:
            raise ValueError("single_pass: there is no sentence of kind context")
        if self.single_pass and "scene" in names:
            raise ValueError("single_pass: its one text is called scene, so no feature can be")
        if not self.frozen and (self.training == "staged" or self.placebo is not None):
            raise ValueError("frozen=false goes with training=joint and without a placebo")
        return self

    @property
    def sentences(self) -> tuple[ContextSentence, ...]:
        """The features that are told by the request's context."""
        return tuple(f for f in self.features if isinstance(f, ContextSentence))
