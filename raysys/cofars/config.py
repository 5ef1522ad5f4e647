"""Options of CoFARS. Defaults are the repaired method; the paper's text is reached by switches."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from raysys.ctr.retrievers.draws import MAX_SEED
from raysys.data.attributes import AttributeConfig
from raysys.data.manifest import known_behaviours
from raysys.layers.divergence import Kind

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Activation = Literal["softmax", "sigmoid", "sigmoid_shares"]
Similarity = Literal["divergence", "inner"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ContextConfig(_Frozen):
    """Which features make a context, and which of them back-off gives up first."""

    features: tuple[str, ...]
    drop: tuple[str, ...] = ()


class PreferenceConfig(_Frozen):
    """Logged shares D(C).

    `strength` of the Dirichlet prior and `support` are in events. `per_user_shrunk` compares the
    shares of a user in his contexts, shrunk to the shares of all users, with the model's.
    `behaviours` are those that count; none named: all of the history. `pairs` of contexts are
    drawn per request for L_MSE.
    """

    attributes: AttributeConfig
    behaviours: Annotated[tuple[str, ...], AfterValidator(known_behaviours)] = ()
    strength: Annotated[float, Field(ge=0)] = 20.0
    support: Count = 30
    per_user_shrunk: bool = False
    pairs: Count = 32


class EncoderConfig(_Frozen):
    """Vectors of contexts, users and prototypes, and the shares P(x) predicted from them.

    `activation`: softmax per field; the paper's sigmoid as it is; sigmoids divided by their
    sum per field. `similarity`: 1 − divergence of shares, or σ of the inner product (ablation).
    `joint_only`: a context is one vector (0 where unseen), without those of its values.
    `joint_dropout`: share of the contexts in L_MSE that are seen through their values alone, as
    an unseen combination will be.
    `cold_user`: the vector of an unknown user. `anchored`: after the warm-up the prototypes are
    put on contexts, and the encoder stays as it is. Otherwise the prototypes are where L_IND has
    spread them, and the full loss moves all vectors, as printed.
    """

    dim: Count = 32
    hidden: tuple[Count, ...] = (64,)
    prototypes: Count = 16
    activation: Activation = "softmax"
    divergence: Kind = "js"
    smoothing: Positive = 1e-3
    similarity: Similarity = "divergence"
    joint_only: bool = False
    joint_dropout: Share = 0.8
    cold_user: Literal["zero", "mean"] = "zero"
    user_dropout: Share = 0.1
    init_std: Positive = 0.01
    anchored: bool = True


class GateConfig(_Frozen):
    """Gumbel gates. `calibrated`: learned scale and threshold, the latter set at percentiles of
    observed similarities (of edges, and of a request's prototypes), again after each epoch with
    `recalibrate`; otherwise the paper's gate. `fallback`: the best prototype is on where none
    is."""

    temperature: Positive = 1.0
    calibrated: bool = True
    percentile: Annotated[float, Field(ge=0, le=100)] = 92.0
    choice_percentile: Annotated[float, Field(ge=0, le=100)] = 93.0
    recalibrate: bool = True
    soft: bool = False
    fallback: bool = True


class GraphConfig(_Frozen):
    """Graph over prototypes and contexts; no layers: no aggregation (ablation).

    `residual`: H' = H + ReLU(…), so that P still knows what it was fitted on; otherwise as
    printed. `target`: a target context that is not in the user's graph is added to it, or
    skipped and used as it is.
    """

    layers: Annotated[int, Field(ge=0)] = 1
    attention: Literal["similarity", "dot"] = "similarity"
    self_loops: bool = True
    residual: bool = True
    target: Literal["add", "skip"] = "add"


class LossConfig(_Frozen):
    """L = L_REC + γ·L_MSE + λ·L_IND; `literal` is the printed L_REC, clamped; `raw` the printed
    activation sim·(õ·l) of a prototype."""

    mse: Annotated[float, Field(ge=0)] = 5e-2  # γ
    ind: Annotated[float, Field(ge=0)] = 1e-3  # λ
    literal: bool = False
    raw: bool = False


class ListConfig(_Frozen):
    """The K retrieved events. `strict`: short lists stay short; otherwise events of contexts
    ever less like the target fill them, and at last the most recent ones.

    `placebo` breaks what the lists say: `permuted` gives every event the context of one of its
    user's events up to itself, so that where contexts do not change in the course of time, each
    has as many events as before on average; `random` draws the contexts of each user's prototypes
    anew, so that each prototype has about as many events as before, see `Lists.dealt`.
    `placebo_seed` of these draws, left out: `train.seed`.
    """

    events: Count = 100  # K
    strict: bool = False
    placebo: Literal["permuted", "random"] | None = None
    placebo_seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None


class CofarsConfig(_Frozen):
    """Everything about the selector; the ranker behind it has options of its own."""

    contexts: ContextConfig
    preferences: PreferenceConfig
    encoder: EncoderConfig = EncoderConfig()
    gates: GateConfig = GateConfig()
    graph: GraphConfig = GraphConfig()
    loss: LossConfig = LossConfig()
    lists: ListConfig = ListConfig()
    item_dim: Count = 16
    recent: Count = 20  # r

    def seeded(self, seed: int) -> Self:
        """With `seed` for the draws of a placebo, where none is given."""
        if self.lists.placebo_seed is not None:
            return self
        lists = self.lists.model_copy(update={"placebo_seed": seed})
        return self.model_copy(update={"lists": lists})
