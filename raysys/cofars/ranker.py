"""DIN behind CoFARS: a frozen selector chooses the events, target attention ranks over them."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save as to_safetensors

from raysys.artifacts.retrieval import RetrievalExplanation
from raysys.cofars.build import build_selector
from raysys.cofars.explain import Explainer
from raysys.cofars.fit import CofarsFit, hash_users
from raysys.cofars.lists import Lists, Track
from raysys.cofars.requests import RequestReader
from raysys.cofars.retriever import CofarsRetriever
from raysys.cofars.selector import CofarsSelector
from raysys.cofars.stored import load_lists, made_of
from raysys.ctr.din import DIN, DINConfig
from raysys.ctr.retrievers.draws import earlier
from raysys.data.attribute_counts import event_keys
from raysys.data.attributes import Attributes
from raysys.data.batch import Collator, Pointers
from raysys.data.catalogue import Catalogue
from raysys.data.context_index import ContextIndex
from raysys.data.context_keys import ContextTable
from raysys.data.contexts import ContextCodec
from raysys.data.features import FeatureSpace
from raysys.data.files import standing
from raysys.data.histories import Histories

Ints = npt.NDArray[np.int64]
LISTS = "cofars"  # below the run's indexes


class CofarsDINConfig(DINConfig):
    """Options of `CofarsDIN`; `cofars` is fitted, not chosen."""

    cofars: CofarsFit


class CofarsDIN(DIN):
    """DIN over the events that CoFARS retrieves. The selector is part of the weights, frozen.

    Args (beside those of `DIN`):
        chooser: makes the selector; called last, so that the weights of DIN begin alike.
        table: what a context is.
        attributes: what the selector predicts shares of.
        users: users with vectors of their own.
        recent: r.
        add_target: see `GraphConfig`.
        strict, placebo, placebo_seed: see `ListConfig`; K is `history_length`.
    """

    Config = CofarsDINConfig

    def __init__(
        self,
        item_cardinalities: Sequence[int],
        context_cardinalities: Sequence[int],
        vector_widths: dict[str, int],
        *,
        chooser: Callable[[], CofarsSelector],
        table: ContextTable,
        attributes: Attributes,
        users: int,
        recent: int,
        add_target: bool,
        strict: bool,
        placebo: str | None = None,
        placebo_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(item_cardinalities, context_cardinalities, vector_widths, **options)
        self.chooser = chooser().requires_grad_(False).eval()
        # Hashes of user ids, ascending: user i of the selector is the i-th.
        self.user_hash: torch.Tensor
        self.register_buffer("user_hash", torch.zeros(users, dtype=torch.int64))
        self.table = table
        self.attributes = attributes
        self.recent = recent
        self.add_target = add_target
        self.strict = strict
        self.placebo = placebo
        self.placebo_seed = placebo_seed
        self._stored: Path | None = None
        self._name = ""  # of the frozen model

    @classmethod
    def arguments(cls, config: CofarsDINConfig, features: FeatureSpace) -> dict[str, Any]:  # type: ignore[override]
        """See `DIN`: with the selector, and K as the length of the history."""
        fitted, chosen = config.cofars, config.cofars.options
        options = super().arguments(config, features)
        del options["retriever"], options["selector"]
        return {
            **options,
            "chooser": partial(
                build_selector,
                chosen,
                fitted.table,
                fitted.attributes,
                users=fitted.users,
                item_cardinalities=features.item_cardinalities,
                vector_widths=features.vectors,
            ),
            "table": fitted.table,
            "attributes": fitted.attributes,
            "users": fitted.users,
            "recent": chosen.recent,
            "add_target": chosen.graph.target == "add",
            "strict": chosen.lists.strict,
            "placebo": chosen.lists.placebo,
            "placebo_seed": chosen.lists.placebo_seed or 0,
            "history_length": chosen.lists.events,
        }

    def train(self, mode: bool = True) -> Self:
        """The selector stays as it is: without noise, its items encoded once."""
        super().train(mode)
        if mode:
            self._name = ""
            self.chooser.eval()
            self.chooser.items.freeze()
        return self

    def bind(self, catalogue: Catalogue) -> None:
        """See `Ranker`; the weights have to be there already."""
        super().bind(catalogue)
        vectors = {name: getattr(self.items, f"vectors_{name}") for name in self.items.projections}
        self.chooser.items.bind(self.items.codes, vectors)
        self.chooser.items.freeze()

    def collator(self, histories: Histories, codec: ContextCodec) -> Collator:
        """See `Ranker`; the index of the histories is opened or built at the first batch."""
        events = _Events(partial(self.retriever_over, histories))
        return Collator(histories, codec, self.history_length, events)

    def retriever_over(self, histories: Histories) -> CofarsRetriever:
        """What chooses the events of these histories."""
        users = self.user_rows(histories)
        lists = self._open(histories) or self.lists(histories)
        reader = RequestReader(
            histories,
            self.table,
            lists.index,
            users,
            recent=self.recent,
            add_target=self.add_target,
        )
        return CofarsRetriever(
            self.chooser, reader, lists, events=self.history_length, strict=self.strict
        )

    def user_rows(self, histories: Histories) -> Ints:
        """Row of the selector's user vectors [U] of each user of the histories, −1 unknown."""
        known, asked = self.user_hash.cpu().numpy(), hash_users(histories)
        if not len(known):
            return np.full(len(asked), -1, np.int64)
        place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        return np.where(known[place] == asked, place, -1)

    def lists(self, histories: Histories, track: Track = iter, *, nightly: bool = False) -> Lists:
        """The context index and the lists of these histories; `nightly` as in `Lists.build`."""
        keys = event_keys(histories, self.table, slice(None))
        if self.placebo == "permuted":
            keys = keys[earlier(histories.start, self.placebo_seed)]
        index = ContextIndex.build(histories.start, keys)
        users = self.user_rows(histories)
        made = self.selector_id()
        lists = Lists.build(self.chooser, self.table, index, users, made, track, nightly=nightly)
        return lists.dealt(self.placebo_seed) if self.placebo == "random" else lists

    def explain_retrieval(
        self, pointers: Pointers, collate: Collator, catalogue: Catalogue
    ) -> list[RetrievalExplanation]:
        """See `Ranker`."""
        assert isinstance(collate.selector, _Events)
        return Explainer(collate.selector.retriever, self.attributes, catalogue)(pointers)

    def freeze(self) -> None:
        """See `Ranker`."""
        super().freeze()
        self._name = self._named()

    def selector_id(self) -> str:
        """12 hex digits that name the selector: its weights, its contexts, its users and the
        placebo that its lists are. Computed once where the model is frozen."""
        return self._name or self._named()

    def _named(self) -> str:
        state = {f"chooser.{k}": v.contiguous() for k, v in self.chooser.state_dict().items()}
        body = to_safetensors({**state, "user_hash": self.user_hash})
        digest = hashlib.sha256(body + self.table.model_dump_json().encode())
        if self.placebo is not None:
            digest.update(f"{self.placebo} {self.placebo_seed}".encode())
        return digest.hexdigest()[:12]

    def open_indexes(self, folder: Path) -> None:
        """See `Ranker`: lists made by `write_lists`, used for the histories they were made of.

        Raises:
            ArtifactError: lists of another selector, or incomplete ones.
        """
        self._stored = folder / LISTS
        if standing(self._stored).is_dir():
            load_lists(self._stored, self.selector_id())

    def _open(self, histories: Histories) -> Lists | None:
        # Nobody has stored lists of histories that came with requests.
        if self._stored is None or histories.owners is not None:
            return None
        model = self.selector_id()
        if not made_of(self._stored, model, histories):
            return None
        return load_lists(self._stored, model)


class _Events:
    """A selector of the collator that is made when it is first asked."""

    def __init__(self, make: Callable[[], CofarsRetriever]) -> None:
        self._make = make

    @cached_property
    def retriever(self) -> CofarsRetriever:
        """Made now, if it was not asked before."""
        return self._make()

    def rows(self, pointers: Pointers, histories: Histories) -> Ints:
        """See `Selector`."""
        return self.retriever.rows(pointers, histories)
