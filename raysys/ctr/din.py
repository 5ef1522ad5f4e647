"""DIN: target attention over past events (Zhou et al., KDD 2018), with contexts.

Which events these are is the business of a retriever (`raysys.ctr.retrievers`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor

from raysys.ctr.ranker import CTRConfig, CTRRanker, Width
from raysys.ctr.retrievers.base import Pairs, Retriever, Widths
from raysys.ctr.retrievers.build import retriever_of, selector_of
from raysys.ctr.retrievers.config import RetrieverConfig
from raysys.data.batch import Batch, Collator, Selector
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import ContextCodec
from raysys.data.dated import DatedField
from raysys.data.feature_table import DatedFeature, read_features
from raysys.data.features import FeatureSpace
from raysys.data.histories import Histories
from raysys.errors import ArtifactError
from raysys.layers.attention import TargetAttention
from raysys.layers.dated import DatedInputs
from raysys.layers.losses import pointwise_bce
from raysys.layers.mlp import MLP, Activation

# Under RUN/indexes: a dated table that is newer than the one in the snapshot.
FEATURES = "features"


class DINConfig(CTRConfig):
    """Options of `DIN`."""

    attention_hidden: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 32)
    attention_activation: Activation = "relu"
    attention_softmax: bool = False
    activation: Activation = "relu"
    match: bool = True  # candidate ∘ interest as an input of the towers
    # Which past events; None: the newest `history_length`, which a retriever replaces.
    retriever: RetrieverConfig | None = None


class Inputs(NamedTuple):
    """What the towers of `DIN` are given: candidates [B, C, Di], the request [B, S], what the
    attention sees, and further blocks [B, C, Di] of a subclass."""

    candidates: Tensor
    request: Tensor
    pairs: Pairs
    blocks: tuple[Tensor, ...] = ()


class DIN(CTRRanker):
    """Candidates attend to past events; the request's context is part of the query and each
    event's own context part of its key, so that the match may depend on the situation.

    Args (beside those of `CTRRanker`):
        retriever: makes what searches the window for each candidate, from the layout of the
            vectors; called last, so that all other weights begin alike whatever it makes.
        selector: makes what chooses the window of each request.
        blocks: how many blocks as wide as an item a subclass adds to the input of the towers.
        tables: dated features of the user that the towers see, as part of the request.
    """

    Config = DINConfig

    def __init__(
        self,
        item_cardinalities: Sequence[int],
        context_cardinalities: Sequence[int],
        vector_widths: dict[str, int],
        *,
        attention_hidden: Sequence[int] = (64, 32),
        attention_activation: Activation = "relu",
        attention_softmax: bool = False,
        hidden: Sequence[int] = (128, 64),
        activation: Activation = "relu",
        match: bool = True,
        dropout: float = 0.0,
        embedding_dim: int = 16,
        vector_dim: int = 32,
        history_length: int = 50,
        orders: bool = True,
        behaviours: bool = True,
        init_std: float = 0.1,
        sparse_embeddings: bool = False,
        retriever: Callable[[Widths], Retriever | None] | None = None,
        selector: Callable[[], Selector] | None = None,
        blocks: int = 0,
        tables: Sequence[DatedField] = (),
    ) -> None:
        super().__init__(
            item_cardinalities,
            context_cardinalities,
            vector_widths,
            embedding_dim=embedding_dim,
            vector_dim=vector_dim,
            history_length=history_length,
            orders=orders,
            behaviours=behaviours,
            init_std=init_std,
            sparse_embeddings=sparse_embeddings,
        )
        self.attention: TargetAttention | None = TargetAttention(
            self.event_width,
            attention_hidden,
            act=attention_activation,
            softmax=attention_softmax,
        )
        self.tables = tuple(tables)
        self.dated: DatedInputs | None = None
        self.known: tuple[DatedFeature, ...] = ()
        if tables:
            self.dated = DatedInputs([t.mean for t in tables], [t.deviation for t in tables])
            self.request_width += self.dated.width
        self.match = match
        width = self.items.width * (1 + match + blocks) + self.event_width + self.request_width

        def tower() -> MLP:
            return MLP(width, hidden, out=1, act=activation, dropout=dropout)

        self.click = tower()
        self.order = tower() if orders else None
        self.selector = selector
        fields = len(context_cardinalities) + behaviours
        widths = Widths(self.items.width, fields, embedding_dim)
        self.retriever = None if retriever is None else retriever(widths)
        self.first_stage: MLP | None = None
        if self.retriever is not None:
            if not self.retriever.attends:
                self.attention = None
            if self.retriever.first_stage_width:
                given = self.items.width + self.retriever.first_stage_width
                self.first_stage = MLP(given, hidden, out=1, act=activation, dropout=dropout)

    @classmethod
    def from_config(cls, config: DINConfig, features: FeatureSpace) -> Self:
        """Build for fitted features.

        Raises:
            ConfigError: a retriever that these features do not allow.
        """
        return cls(
            features.item_cardinalities,
            features.context_cardinalities,
            features.vectors,
            **cls.arguments(config, features),
        )

    @classmethod
    def arguments(cls, config: DINConfig, features: FeatureSpace) -> dict[str, Any]:
        """The named arguments of the constructor; a subclass replaces what is its own."""
        options = {name: getattr(config, name) for name in DINConfig.model_fields}
        if config.retriever is not None:
            options["history_length"] = config.retriever.gathered
        options["retriever"] = partial(retriever_of, config.retriever, features)
        selector = selector_of(config.retriever, features)
        return {**options, "selector": selector, "tables": features.tables}

    def collator(self, histories: Histories, codec: ContextCodec) -> Collator:
        """See `Ranker`: with the events that the selector chooses."""
        selector = None if self.selector is None else self.selector()
        return Collator(histories, codec, self.history_length, selector, self.known)

    def bind(self, catalogue: Catalogue) -> None:
        """See `Ranker`."""
        super().bind(catalogue)
        if self.retriever is not None:
            self.retriever.bind(self.items.codes)

    def look_up(self, features: Sequence[DatedFeature]) -> None:
        """Where the dated features of users are found from now on.

        Raises:
            ArtifactError: another width than that of training.
        """
        for feature, table in zip(features, self.tables, strict=True):
            if feature.width != len(table.mean):
                raise ArtifactError(
                    f"feature {feature.name}: {feature.width} numbers, the model was trained on "
                    f"{len(table.mean)}; build the table with the model of that time"
                )
        self.known = tuple(features)

    def save_snapshot(self, folder: Path) -> None:
        """See `Ranker`: the dated features."""
        for feature in self.known:
            feature.save(folder / FEATURES)

    def open_snapshot(self, folder: Path) -> None:
        """See `Ranker`."""
        self.look_up([DatedFeature.load(folder / FEATURES, table.name) for table in self.tables])

    def open_indexes(self, folder: Path) -> None:
        """See `Ranker`: a newer dated table, as the nightly job leaves it after its first date."""
        if self.tables and any((folder / FEATURES).glob("date=*")):
            self.look_up(read_features(folder / FEATURES, [table.name for table in self.tables]))

    def request_vectors(self, batch: Batch) -> Tensor:
        """With the dated features of the user [B, F·d + 1 + W + T]."""
        plain = super().request_vectors(batch)
        if self.dated is None:
            return plain
        assert batch.dated is not None
        return torch.cat([plain, self.dated(batch.dated)], -1)

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits [B, C] of click and order."""
        return self._towers(self.inputs(batch))

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As of all CTR rankers, plus BCE of the click from the retriever's first stage alone
        where that has weights to learn; both with weight 1."""
        return self.loss_of(self.inputs(batch), batch)

    def loss_of(self, inputs: Inputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of the batch from its inputs."""
        loss, weight = self.cost(*self._towers(inputs), batch)
        if self.first_stage is not None:
            assert self.retriever is not None
            assert batch.clicks is not None
            found = self.retriever.first_stage(inputs.pairs)
            logits = self.first_stage(torch.cat([inputs.candidates, found], -1))
            loss = loss + pointwise_bce(logits.squeeze(-1), batch.clicks, batch.candidate_mask)[0]
        return loss, weight

    def inputs(self, batch: Batch) -> Inputs:
        """What the towers are given."""
        candidates = self.candidate_vectors(batch)
        pairs = Pairs(
            query=self.query_vectors(batch, candidates),
            keys=self.event_vectors(batch),
            mask=batch.history_mask,
            candidates=batch.candidates,
            events=batch.history_items,
        )
        return Inputs(candidates, self.request_vectors(batch), pairs)

    def _interest(self, pairs: Pairs) -> Tensor:
        if self.retriever is not None:
            return self.retriever(pairs, self.attention)
        assert self.attention is not None
        return self.attention(pairs.query, pairs.keys, pairs.mask)

    def _towers(self, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
        candidates = inputs.candidates
        interest = self._interest(inputs.pairs)
        request = inputs.request.unsqueeze(1).expand(*candidates.shape[:2], -1)
        parts = [candidates, interest, request]
        if self.match:
            # The item part of an event comes first in its vector, field by field as in the
            # candidate's: their product says directly which fields agree with the past.
            parts.append(candidates * interest[..., : self.items.width])
        x = torch.cat([*parts, *inputs.blocks], -1)
        click = self.click(x).squeeze(-1)
        return click, None if self.order is None else self.order(x).squeeze(-1)

    def event_weights(self, batch: Batch) -> Tensor:
        """The weights of DIN's activation unit [B, C, L], 0 for events not retrieved; of SDIM
        those of its sum, of TWIN those of its own attention."""
        pairs = self.inputs(batch).pairs
        if self.retriever is not None:
            return self.retriever.weights(pairs, self.attention)
        assert self.attention is not None
        return self.attention.weights(pairs.query, pairs.keys, pairs.mask)
