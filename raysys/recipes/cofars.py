"""Train `ctr/cofars`: contexts and selector, lists, then the ranker; stages of one run.

Every stage keeps its own checkpoints in RUN/checkpoints, so that the same command goes on in the
stage where an earlier launch stopped, and repeats none that is finished.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from raysys.cofars.batch import SelectorBatch, SelectorCollator, UserPreferences
from raysys.cofars.build import build_selector
from raysys.cofars.config import CofarsConfig
from raysys.cofars.fit import (
    CofarsFit,
    TrainingLog,
    check_fields,
    fit_contexts,
    hash_users,
)
from raysys.cofars.pictures import pictures
from raysys.cofars.ranker import LISTS, CofarsDIN
from raysys.cofars.requests import RequestReader
from raysys.cofars.selector import CofarsSelector
from raysys.cofars.stored import load_lists, made_of, write_lists
from raysys.ctr.din import DINConfig
from raysys.data.attribute_counts import event_keys
from raysys.data.catalogue import Catalogue
from raysys.data.context_index import ContextIndex
from raysys.data.features import FeatureSpace
from raysys.data.features import fit_contexts as context_features
from raysys.data.histories import Histories
from raysys.data.prepared import Prepared
from raysys.data.sampling import ImpressionLoader, pointers_of
from raysys.recipes import ranker
from raysys.recipes.ranker import Built, GroupedTask, Positive, RankerRecipe
from raysys.tracking.figures import write_figure
from raysys.training import EarlyStopping, Session, TrainConfig, World, fit
from raysys.training.rng import seed_everything

_RANKER_TRAIN = TrainConfig(
    epochs=10, lr=1e-3, weight_decay=1e-4, early_stopping=EarlyStopping(metric="gauc", patience=2)
)


class SelectorTraining(BaseModel):
    """How the selector is learned; where and how safely, `train` of the recipe says.

    warm_up: γ·L_MSE + λ·L_IND alone, until the encoder tells contexts apart; then both gates
    are calibrated on `calibrate_on` training impressions. train: the full loss from there;
    left out, the similarity of contexts and prototypes alone selects, and graph and short-term
    state are silent. batch_size: impressions in one global batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: Positive = 64
    warm_up: TrainConfig = TrainConfig(epochs=3, lr=1e-2)
    calibrate_on: Positive = 256
    train: TrainConfig | None = None

    @model_validator(mode="after")
    def _placed_elsewhere(self) -> Self:
        for name, part in (("warm_up", self.warm_up), ("train", self.train)):
            fields = TrainConfig.EXECUTION if part is not None else ()
            if differing := [k for k in sorted(fields) if getattr(part, k) != _default(k)]:
                raise ValueError(f"{name}.{differing[0]}: give it as train.{differing[0]}")
        return self


def _default(name: str) -> Any:
    return TrainConfig.model_fields[name].default


class CofarsRecipe(RankerRecipe):
    """`ctr/cofars`."""

    recipe: Literal["ctr/cofars"] = "ctr/cofars"
    model: DINConfig = DINConfig()
    cofars: CofarsConfig
    selector: SelectorTraining = SelectorTraining()
    train: TrainConfig = Field(default=_RANKER_TRAIN)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.selector.train is None and not self.cofars.graph.residual:
            raise ValueError("selector.train: without it the graph needs cofars.graph.residual")
        if self.model.retriever is not None:
            raise ValueError("model.retriever: CoFARS is the retriever; see cofars.lists")
        return self


class SelectorTask(GroupedTask):
    """The selector, one of its two losses, and its own ranking on the validation split.

    Beside `gauc`, validation gives the density of open edges and the prototypes that are on.
    """

    model: CofarsSelector

    def __init__(
        self,
        model: CofarsSelector,
        data: Prepared,
        collator: SelectorCollator,
        limit: int,
        before: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(data, collator, limit)
        self.model = model
        self._before = before
        self._seen: list[Tensor] = []

    def loss(self, batch: SelectorBatch) -> tuple[Tensor, Tensor]:
        """(sum of L, weight) over the candidates of a micro batch."""
        assert batch.clicks is not None
        losses = self.model.loss(
            batch.requests, batch.candidates, batch.clicks, batch.candidate_mask
        )
        return losses.total, losses.weight

    def score(self, batch: SelectorBatch) -> Tensor:
        """What the selector itself thinks of the candidates [R, C]."""
        chosen = self.model(batch.requests)
        self._seen.append(torch.stack([chosen.density, (chosen.z > 0.5).float().sum(1).mean()]))
        return self.model.relevance(chosen, batch.candidates)

    def validate(self, world: World) -> dict[str, float]:
        """`gauc`, and on this worker's share `density` and `prototypes`."""
        if self._before is not None:
            self._before()
        self._seen = []
        values = super().validate(world)
        if self._seen:
            density, active = torch.stack(self._seen).nan_to_num().mean(0).tolist()
            values |= {"density": density, "prototypes": active}
        return values


class WarmUpTask:
    """The selector with the losses that need neither graph nor candidates."""

    def __init__(self, model: CofarsSelector, *, spread: bool) -> None:
        self.model = model
        self.spread = spread

    def loss(self, batch: SelectorBatch) -> tuple[Tensor, Tensor]:
        """(sum of γ·L_MSE + λ·L_IND, weight) over the candidates of a micro batch."""
        weight = batch.candidate_mask.sum(1).float()
        losses = self.model.warm_up_loss(batch.requests, weight, spread=self.spread)
        return losses.total, losses.weight


def ready(config: CofarsRecipe) -> Prepared:
    """See `raysys.recipes.ranker.ready`."""
    data = ranker.ready(config)
    codec = context_features(data, config.features.contexts)
    check_fields(data, config.cofars, codec)
    return data


def train(config: CofarsRecipe, session: Session) -> dict[str, Any]:
    """What every worker runs."""
    return ranker.train(config, session, with_selector)


def with_selector(
    config: RankerRecipe,
    options: BaseModel,
    data: Prepared,
    features: FeatureSpace,
    catalogue: Catalogue,
    session: Session,
    *,
    kind: type[CofarsDIN] = CofarsDIN,
    more: dict[str, Any] | None = None,
    shown: FeatureSpace | None = None,
) -> Built:
    """Fit the selector and build its lists; the ranker is fresh, its selector frozen.

    kind: of the ranker, whose own options are `more`; shown: the features it is built for, by
    default those of the selector.
    """
    assert isinstance(config, CofarsRecipe)
    chosen = config.cofars.seeded(config.train.seed)
    fitted, training = fit_contexts(data, chosen, features.contexts)
    selector = fit_selector(config, data, fitted, training, features, catalogue, session)
    # Whatever the selector has drawn, the ranker begins like one without it.
    seed_everything(config.train.seed)
    settled = kind.Config(**dict(options), cofars=fitted, **(more or {}))
    shown = shown or features
    model = kind.from_config(settled, shown)
    model.chooser.load_state_dict(selector.state_dict())
    model.user_hash.copy_(torch.from_numpy(training.user_hash))
    model.bind(catalogue)
    world = World.current(config.train.device)
    indexes = session.run_dir / "indexes"
    if world.leads and not made_of(indexes / LISTS, model.selector_id(), data.histories):
        lists = model.lists(data.histories, nightly=True)
        write_lists(indexes / LISTS, lists, data.histories)
    if world.leads:
        _draw(session.run_dir, model, data.histories)
    world.share(None)  # Nobody opens the lists before they are there.
    model.open_indexes(indexes)
    return Built(model, settled, shown)


def _draw(run_dir: Path, model: CofarsDIN, histories: Histories) -> None:
    """Write the figures of the selector for the report."""
    lists = load_lists(run_dir / "indexes" / LISTS, model.selector_id())
    users = model.user_rows(histories)
    drawn = pictures(model.chooser, model.table, model.attributes, lists, users)
    for name, figure in drawn.items():
        write_figure(run_dir, name, figure)


def fit_selector(
    config: CofarsRecipe,
    data: Prepared,
    fitted: CofarsFit,
    training: TrainingLog,
    features: FeatureSpace,
    catalogue: Catalogue,
    session: Session,
) -> CofarsSelector:
    """Warm up, calibrate, fit; each goes on where it stopped."""
    options, how = config.cofars, config.selector
    selector = build_selector(
        options,
        fitted.table,
        fitted.attributes,
        users=fitted.users,
        item_cardinalities=features.item_cardinalities,
        vector_widths=features.vectors,
    )
    vectors = {name: torch.from_numpy(values) for name, values in catalogue.vectors.items()}
    selector.items.bind(torch.from_numpy(catalogue.codes).long(), vectors)
    selector.to(World.current(config.train.device).device)
    shares = training.bind(selector, fitted)
    collator = _collator(options, data, fitted, training, shares)
    loader = ImpressionLoader(
        data, collator, batch_size=how.batch_size, seed=config.train.seed, limit=config.train_limit
    )
    # Prototypes that are put on contexts afterwards need no spreading.
    warm = WarmUpTask(selector, spread=not options.encoder.anchored)
    fit(warm, loader, _placed(how.warm_up, config), session.stage("warm-up"))
    if options.encoder.anchored:
        rows = selector.seen_rows
        weight = torch.from_numpy(training.counts.events).to(rows.device)[rows].float()
        selector.encoder.place_prototypes(selector.seen_codes, rows, weight)
        # L_REC wants vectors that suit items; they would no longer tell what contexts prefer.
        selector.encoder.requires_grad_(False)
    if how.train is None:
        selector.silence()
    calibrate = partial(_calibrate, selector, config, data, collator)
    calibrate()
    if how.train is not None:
        again = calibrate if options.gates.recalibrate else None
        task = SelectorTask(selector, data, collator, config.valid_limit, again)
        fit(task, loader, _placed(how.train, config), session.stage("selector"))
    return selector.cpu().eval()


def _collator(
    options: CofarsConfig,
    data: Prepared,
    fitted: CofarsFit,
    training: TrainingLog,
    shares: np.ndarray,
) -> SelectorCollator:
    histories, table, preferences = data.histories, fitted.table, options.preferences
    index = ContextIndex.build(histories.start, event_keys(histories, table, slice(None)))
    asked = hash_users(histories)
    place = np.searchsorted(training.user_hash, asked).clip(max=fitted.users - 1)
    users = np.where(training.user_hash[place] == asked, place, -1)
    reader = RequestReader(
        histories,
        table,
        index,
        users,
        recent=options.recent,
        add_target=options.graph.target == "add",
    )
    if not preferences.per_user_shrunk:
        return SelectorCollator(reader)
    widths = fitted.attributes.widths
    return SelectorCollator(
        reader, UserPreferences(training.values, widths, shares, preferences.strength)
    )


def _calibrate(
    selector: CofarsSelector, config: CofarsRecipe, data: Prepared, collator: SelectorCollator
) -> None:
    rows = data.impressions.of("train")
    generator = np.random.default_rng(config.train.seed)
    chosen = generator.choice(rows, min(len(rows), config.selector.calibrate_on), replace=False)
    batch = collator(pointers_of(data, np.sort(chosen)))
    gates = config.cofars.gates
    device = selector.encoder.prototypes.device
    selector.calibrate(batch.requests.to(device), gates.percentile, gates.choice_percentile)


def _placed(part: TrainConfig, config: CofarsRecipe) -> TrainConfig:
    """The options of a stage on the workers of the whole run."""
    return part.model_copy(
        update={
            "seed": config.train.seed,
            **{name: getattr(config.train, name) for name in TrainConfig.EXECUTION},
        }
    )
