"""The arms of the cost test: the same DIN, each with its way to choose past events."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.cofars_data import Drawn
from raysys.cofars.fit import hash_users
from raysys.cofars.ranker import LISTS, CofarsDIN, CofarsDINConfig
from raysys.cofars.requests import RequestReader
from raysys.cofars.stored import write_lists
from raysys.ctr.din import DIN, DINConfig
from raysys.ctr.retrievers.base import Pairs, Retriever, TopK
from raysys.ctr.retrievers.config import (
    ETA,
    SDIM,
    TWIN,
    Full,
    Recent,
    RetrieverConfig,
    SIMHard,
    SIMSoft,
)
from raysys.ctr.retrievers.sim import SoftSearch
from raysys.ctr.retrievers.twin import SplitSearch
from raysys.data.attribute_counts import event_keys
from raysys.data.batch import Batch, Collator, Pointers
from raysys.data.context_index import ContextIndex

SINGLE = ("sim-soft-single", "twin-single")
CALIBRATED_ON = 256  # requests


class SoftSearchSingle(SoftSearch):
    """Soft search that scores in single precision, ties as rounding leaves them."""

    def relevance(self, pairs: Pairs, dtype: torch.dtype = torch.float32) -> Tensor:
        """See `SoftSearch`."""
        return super().relevance(pairs, dtype)


class SplitSearchSingle(SplitSearch):
    """TWIN's search in single precision, ties as rounding leaves them."""

    def relevance(self, pairs: Pairs) -> Tensor:
        """See `SplitSearch`."""
        return self.attention.scores(pairs.query, pairs.keys)


def single(search: Retriever) -> Retriever:
    """A search with the same weights that scores in single precision."""
    made: Retriever
    if isinstance(search, SoftSearch):
        width = search.behaviour.out_features
        made = SoftSearchSingle(search.count, search.first_stage_width, width)
    else:
        assert isinstance(search, SplitSearch)
        attention = search.attention
        width = attention.query.out_features
        made = SplitSearchSingle(search.count, attention.widths, width, own=False)
    made.load_state_dict(search.state_dict())
    return made


@dataclass(frozen=True)
class Arm:
    """A ranker with what gathers its batches."""

    model: DIN
    collator: Collator

    @torch.inference_mode()
    def retrieve(self, pointers: Pointers) -> object:
        """The chosen events of each request, or of each candidate where the model searches.

        A search needs the vectors of its whole window: gathering them is a part of it. Of SDIM
        all that it does with the past is its retrieval.
        """
        search = self.model.retriever
        if search is None:
            return self.collator.rows(pointers)
        pairs = self.pairs(pointers)
        return search._chosen(pairs) if isinstance(search, TopK) else search(pairs, None)

    @torch.inference_mode()
    def pairs(self, pointers: Pointers) -> Pairs:
        """Vectors of candidates and gathered events."""
        return self.model.inputs(self.collator(pointers)).pairs

    @torch.inference_mode()
    def search(self, pairs: Pairs) -> object:
        """The K events of each candidate, with all vectors at hand; of searching arms only."""
        assert isinstance(self.model.retriever, TopK)
        return self.model.retriever._chosen(pairs)

    @torch.inference_mode()
    def whole(self, pointers: Pointers) -> object:
        """Scores of the candidates: retrieve, gather, rank."""
        return self.model(self.collator(pointers))

    def stepper(self, batches: Callable[[int], Pointers]) -> Callable[[int], None]:
        """One training step on the i-th batch: gather, loss, gradient, Adam."""
        model = self.model.train()
        optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)

        def step(index: int) -> None:
            batch: Batch = self.collator(batches(index))
            loss, weight = model.loss(batch)
            optimiser.zero_grad(set_to_none=True)
            (loss / weight).backward()
            optimiser.step()

        return step


def rivals(window: int, k: int) -> dict[str, RetrieverConfig]:
    """All arms but CoFARS. Attention over the K events is that of the ranker in every arm."""
    return {
        "recent": Recent(k=k),
        "sim-soft": SIMSoft(window=window, k=k),
        "sim-hard": SIMHard(window=window, k=k),
        "eta": ETA(window=window, k=k),
        "sdim": SDIM(window=window),
        "twin": TWIN(window=window, k=k, stage_two="shared"),
        "full": Full(window=window),
    }


def make_arms(
    data: Drawn, window: int, k: int, seed: int, folder: Path, names: Sequence[str] | None = None
) -> dict[str, Arm]:
    """Untrained arms ready to serve; CoFARS keeps its lists in `folder`. `names`: rivals, all
    by default."""
    arms = {"cofars": with_stored_lists(cofars_arm(data, k, seed), folder)}
    configs = rivals(window, k)
    for name in (*configs, *SINGLE) if names is None else names:
        arms[name] = din_arm(data, seed, retriever=configs[name.removesuffix("-single")])
        if name in SINGLE:
            model = arms[name].model
            assert model.retriever is not None
            model.retriever = single(model.retriever)
    for arm in arms.values():
        arm.model.freeze()
    return arms


def din_arm(data: Drawn, seed: int, **options: Any) -> Arm:
    """DIN with the given options."""
    torch.manual_seed(seed)
    model = DIN.from_config(DINConfig(orders=False, **options), data.features)
    model.bind(data.catalogue)
    return Arm(model, model.collator(data.histories, data.histories.codec))


def cofars_arm(data: Drawn, k: int, seed: int) -> Arm:
    """CoFARS with its graph and short-term state at work; prototypes lie on contexts, and both
    gates are calibrated at the recipe's percentiles."""
    torch.manual_seed(seed)
    fitted, histories = data.fitted(k), data.histories
    config = CofarsDINConfig(cofars=fitted, orders=False)
    model = CofarsDIN.from_config(config, data.features)
    known = torch.from_numpy(np.sort(hash_users(histories)))
    model.user_hash.copy_(known)
    model.bind(data.catalogue)
    chooser, table = model.chooser, fitted.table
    keys = event_keys(histories, table, slice(None))
    weight = np.bincount(table.rows(keys), minlength=table.size)[1:]
    codes, rows = table.codes(table.known_keys), np.arange(1, table.size)
    chooser.encoder.place_prototypes(
        *map(torch.from_numpy, (codes, rows, weight.astype(np.float32)))
    )
    users = np.arange(min(CALIBRATED_ON, len(histories.users)))
    index = ContextIndex.build(histories.start, keys)
    reader = RequestReader(histories, table, index, model.user_rows(histories))
    gates = fitted.options.gates
    requests = reader(data.pointers(users, 1))
    chooser.calibrate(requests, gates.percentile, gates.choice_percentile)
    return Arm(model, model.collator(histories, histories.codec))


def with_stored_lists(arm: Arm, folder: Path) -> Arm:
    """CoFARS that reads its lists from `folder`, where they are written first."""
    model, histories = arm.model, arm.collator.histories
    assert isinstance(model, CofarsDIN)
    write_lists(folder / LISTS, model.lists(histories, nightly=True), histories)
    model.open_indexes(folder)
    return Arm(model, model.collator(histories, histories.codec))


def events_found(arm: Arm, pointers: Pointers) -> dict[str, float]:
    """Means over some requests: distinct contexts of their histories, prototypes that are on,
    contexts and events that these select, events found (at most K) and those of them in tier 0;
    `in_a_new_context` is the share of requests that no stored graph serves."""
    selector = arm.collator.selector
    assert isinstance(arm.model, CofarsDIN) and selector is not None
    retriever = arm.model.retriever_over(arm.collator.histories)
    contexts, targets = retriever.reader.contexts(pointers), retriever.reader.target_keys(pointers)
    with torch.inference_mode():
        chosen = retriever.chosen(pointers, contexts, targets)
    on = (retriever.lists.membership(contexts) & chosen[contexts.request]).any(1)
    tier = retriever.retrieve(pointers).tier
    return {
        "contexts": len(contexts.key) / len(pointers.start),
        "in_a_new_context": float((retriever.reader.target_nodes(contexts, targets) < 0).mean()),
        "prototypes_on": float(chosen.sum(1).mean()),
        "contexts_selected": float(on.sum()) / len(pointers.start),
        "events_selected": float(contexts.count[on].sum()) / len(pointers.start),
        "events_found": float((tier >= 0).sum(1).mean()),
        "events_found_in_tier_0": float((tier == 0).sum(1).mean()),
    }
