"""What every ranker is: a module from `Batch` to scores that knows its catalogue."""

import importlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from raysys.artifacts.persona import PersonaExplanation
from raysys.artifacts.retrieval import RetrievalExplanation
from raysys.data.batch import Batch, Collator, Pointers
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import ContextCodec
from raysys.data.features import FeatureSpace
from raysys.data.histories import Histories
from raysys.errors import ArtifactError
from raysys.layers.embedding import ItemEncoder


class Scores(NamedTuple):
    """score [B, C] to sort by, higher first; p_click and p_order [B, C], None where the model
    gives no probability. Padded candidates hold any finite value."""

    score: Tensor
    p_click: Tensor | None
    p_order: Tensor | None


class Ranker(nn.Module):
    """Base of all rankers.

    A subclass names its `Config` (a frozen pydantic model) and builds itself from features.
    `history_length` is the longest L it wants gathered.
    """

    Config: type[BaseModel]
    history_length: int
    items: ItemEncoder

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any, features: FeatureSpace) -> Self:
        """Build an untrained ranker of `cls.Config` for these features."""

    @abstractmethod
    def forward(self, batch: Batch) -> Scores:
        """Score all candidates of all requests."""

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum of losses, weight) over the batch; both are added up over workers."""

    @abstractmethod
    def event_weights(self, batch: Batch) -> Tensor:
        """How much each past event counts for each candidate [B, C, L]; 0 for padding."""

    def explain_retrieval(
        self, pointers: Pointers, collate: Collator, catalogue: Catalogue
    ) -> list[RetrievalExplanation] | None:
        """Why each of B requests was shown the events it was shown.

        None by default: the choice has no reasons beyond the weights of the events.

        Args:
            pointers: the requests.
            collate: of this model, over the histories of the pointers.
            catalogue: names of items.
        """
        return None

    def explain_persona(
        self, batch: Batch, catalogue: Catalogue
    ) -> list[list[PersonaExplanation]] | None:
        """Per request and candidate, the score in parts by entity of the user's persona.

        None by default: the model has no persona.
        """
        return None

    def hide(self, batch: Batch, hidden: Sequence[Sequence[str]]) -> Batch:
        """The batch with the entities [B] that each request wants to count nowhere.

        Unchanged by default: the model has no persona.
        """
        return batch

    def collator(self, histories: Histories, codec: ContextCodec) -> Collator:
        """What gathers this model's batches, in training, evaluation and serving alike.

        codec: the model's context features.
        """
        return Collator(histories, codec, self.history_length)

    def bind(self, catalogue: Catalogue) -> None:
        """Give the model the items it ranks."""
        self.items.bind(
            torch.from_numpy(catalogue.codes).long(),
            {name: torch.from_numpy(values) for name, values in catalogue.vectors.items()},
        )

    def open_indexes(self, folder: Path) -> None:
        """Where the run keeps what it has computed of its histories, so that `collator` need not.

        Nothing by default.

        Raises:
            ArtifactError: what lies there belongs to another model.
        """

    def adopt(self, codec: ContextCodec) -> None:
        """Take other vocabularies of the context features than the run was saved with, each at
        least as long and beginning alike; `collator` is then asked with them.

        Nothing by default: codes beyond what a model was trained on must not reach it.
        """

    def save_snapshot(self, folder: Path) -> None:
        """Write into `folder` what the model reads beside its weights; nothing by default."""

    def open_snapshot(self, folder: Path) -> None:
        """Read what `save_snapshot` has written.

        Raises:
            ArtifactError: it does not fit the model.
        """

    def freeze(self) -> None:
        """Prepare for scoring: evaluation mode, items encoded once."""
        self.eval()
        self.requires_grad_(False)
        self.items.freeze()


def resolve(reference: str) -> type[Ranker]:
    """The ranker class of a `module:class` string; only `raysys.*` modules are allowed.

    Raises:
        ArtifactError: another module, an unknown class, or one that is no ranker.
    """
    module, _, name = reference.partition(":")
    if not module.startswith("raysys."):
        raise ArtifactError(f"model {reference!r} is refused: only raysys.* classes are loaded")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ArtifactError(
            f"model {reference!r} does not exist in this version of raysys"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Ranker)):
        raise ArtifactError(f"model {reference!r} is no ranker")
    return found
