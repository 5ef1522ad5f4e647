"""Train `ctr/larr`: scene texts → frozen vectors → DIN with a scene vector, aligned with its items.

Stage 3 of a reconstruction (docs/larr.md). The language model only fills the vector table, before
training; the run keeps the vectors it needs, so that nothing is encoded when it scores.
"""

import logging
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from raysys.ctr.din import DIN, DINConfig
from raysys.data.batch import Batch, Collator
from raysys.data.catalogue import Catalogue
from raysys.data.contexts import ContextCodec
from raysys.data.features import FeatureSpace, fit_contexts
from raysys.data.prepared import Prepared
from raysys.errors import ConfigError
from raysys.larr.collapse import effective_rank, mean_cosine
from raysys.larr.config import LarrConfig, RecentItems
from raysys.larr.fit import bind_scene, encode_scene, read_scene, wide_codec
from raysys.larr.ranker import LarrDIN, LarrDINConfig, LarrFit
from raysys.larr.table import SceneTable
from raysys.llm.encoder import EncoderSpec
from raysys.recipes import ranker
from raysys.recipes.ranker import Built, EveryWorker, RankerRecipe, RankingTask, table_path
from raysys.training import (
    EarlyStopping,
    Loader,
    Session,
    TrainConfig,
    World,
    fit,
)
from raysys.training.rng import seed_everything

log = logging.getLogger(__name__)

_TRAIN = TrainConfig(
    epochs=10, lr=1e-3, weight_decay=1e-4, early_stopping=EarlyStopping(metric="gauc", patience=2)
)
# Scene vectors looked at in validation; their singular values are wanted once an epoch.
_WATCHED = 2048
_ALARM_COSINE = 0.95
_ALARM_RANK = 2.0


class LarrRecipe(RankerRecipe):
    """`ctr/larr`.

    scene_encoder: of the scene's texts; left out, `encoder`, which is that of `features.vectors`.
    align: how the scene encoder is fitted to the finished ID tower (larr.training=staged).
    """

    recipe: Literal["ctr/larr"] = "ctr/larr"
    model: DINConfig = DINConfig()
    larr: LarrConfig
    scene_encoder: EncoderSpec | None = None
    align: TrainConfig = TrainConfig(epochs=3, lr=1e-3)
    train: TrainConfig = Field(default=_TRAIN)


class SceneTask(RankingTask):
    """A ranker with a scene vector; validation also says whether the vectors have collapsed.

    `m_effective_rank` and `m_mean_cosine` are those of the scene vectors m of the validation
    split, at most 2,048 of them.
    """

    model: LarrDIN

    def __init__(self, model: LarrDIN, data: Prepared, collator: Collator, limit: int) -> None:
        super().__init__(model, data, collator, limit)
        self._seen: list[Tensor] = []

    def loader(self, batches: Loader[Batch]) -> Loader[Batch]:
        """Alignment compares the requests of all workers, so each has to be there."""
        return EveryWorker(batches)

    def score(self, batch: Batch) -> Tensor:
        """The ranker's score [B, C]."""
        if sum(map(len, self._seen)) < _WATCHED:
            self._seen.append(self.model.scene_vector(batch).cpu())
        return super().score(batch)

    def settle(self) -> None:
        """See `RankingTask`: what was learned through a language model stays as vectors."""
        self.model.scene.settle()

    def validate(self, world: World) -> dict[str, float]:
        """`gauc`, `m_effective_rank`, `m_mean_cosine`."""
        self._seen = []
        values = super().validate(world)
        if not values:
            return values
        mine = torch.cat([*self._seen, torch.zeros(0, self.model.items.width)])
        m = torch.from_numpy(world.gather(mine.numpy()))
        rank, cosine = effective_rank(m), mean_cosine(m)
        if world.leads and (rank < _ALARM_RANK or cosine > _ALARM_COSINE):
            log.warning(
                "the scene vectors have collapsed: effective rank %.1f, mean cosine %.2f",
                rank,
                cosine,
            )
        return {**values, "m_effective_rank": rank, "m_mean_cosine": cosine}


class AlignTask:
    """The scene encoder alone, towards an ID tower that stands still."""

    def __init__(self, model: LarrDIN) -> None:
        self.model = model

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """L_ali, weighted like the loss of the ranker."""
        weight = batch.candidate_mask.float().sum()
        return self.model.alignment(batch, self.model.scene_vector(batch), weight), weight


def ready(config: LarrRecipe) -> Prepared:
    """See `raysys.recipes.ranker.ready`; the scene's texts have their vectors afterwards."""
    data = ranker.ready(config)
    prepare_scene(config, config.larr, config.scene_encoder, data)
    return data


def train(config: LarrRecipe, session: Session) -> dict[str, Any]:
    """What every worker runs."""
    return ranker.train(config, session, _with_scene)


def prepare_scene(
    config: RankerRecipe, larr: LarrConfig, spec: EncoderSpec | None, data: Prepared
) -> int:
    """Encode what the vector table lacks of the scene; the number of texts encoded.

    spec: the scene's encoder, if it is not that of the recipe.

    Raises:
        ConfigError: a feature that the data do not have; two encoders for one field of one table.
    """
    spec = spec or config.encoder
    both = {f.field for f in larr.features if isinstance(f, RecentItems)}
    both &= set(config.features.vectors)
    if config.vector_table is not None and spec != config.encoder and both:
        raise ConfigError(
            f"vector_table: item/{min(both)} is wanted of both encoder and scene_encoder, and a "
            "table holds one; leave vector_table out, then each has a table"
        )
    codec = wide_codec(data, fit_contexts(data, config.features.contexts))
    return encode_scene(data, larr, spec, codec, table_path(config, data.dataset, spec))


def fit_scene(
    config: RankerRecipe,
    larr: LarrConfig,
    spec: EncoderSpec | None,
    data: Prepared,
    trained: ContextCodec,
) -> tuple[LarrFit, SceneTable, ContextCodec]:
    """What a ranker with a scene is stored with, its vectors, and the values they are of.

    spec: see `prepare_scene`; trained: the context features of the training split.
    """
    spec = spec or config.encoder
    codec = wide_codec(data, trained)
    table, wordings = read_scene(data, larr, spec, codec, table_path(config, data.dataset, spec))
    batches = ranker.loader(config, data, Collator(data.histories, data.codec, 1))
    total = config.train.epochs * batches.steps_per_epoch
    total = min(total, config.train.max_steps or total) * config.train.accumulation
    alignment = larr.alignment
    steps = {
        "open": 0,
        "always_stop": -1,
        "delayed": round(alignment.stop_share * total),
    }[alignment.gradient]
    fitted = LarrFit(
        options=larr,
        trained=trained,
        wordings=wordings,
        encoder=spec,
        identity=spec.identity(),
        width=table.vectors.shape[1],
        stop_steps=steps,
    )
    return fitted, table, codec


def _with_scene(
    config: RankerRecipe,
    options: BaseModel,
    data: Prepared,
    features: FeatureSpace,
    catalogue: Catalogue,
    session: Session,
) -> Built:
    """The ranker with its vectors; in stages, its scene encoder is fitted and frozen already."""
    assert isinstance(config, LarrRecipe)
    fitted, table, codec = fit_scene(
        config, config.larr, config.scene_encoder, data, features.contexts
    )
    wide = features.model_copy(update={"contexts": codec})
    settled = LarrDINConfig(**dict(options), larr=fitted)
    model = LarrDIN.from_config(settled, wide)
    bind_scene(model, table, data, fitted, codec)
    if config.larr.training == "staged":
        _staged(config, options, data, features, catalogue, session, model, codec)
    return Built(model, settled, wide, SceneTask)


def _staged(
    config: LarrRecipe,
    options: BaseModel,
    data: Prepared,
    features: FeatureSpace,
    catalogue: Catalogue,
    session: Session,
    model: LarrDIN,
    codec: ContextCodec,
) -> None:
    """ID tower without a scene, then the scene encoder towards it; the ranker starts from both."""
    assert isinstance(options, DINConfig)
    tower = DIN.from_config(options, features)
    tower.bind(catalogue)
    collator = tower.collator(data.histories, features.contexts)
    task = RankingTask(tower, data, collator, config.valid_limit)
    fit(task, ranker.loader(config, data, collator), config.train, session.stage("tower"))
    model.items.load_state_dict(tower.items.state_dict())
    model.bind(catalogue)
    world = World.current(config.train.device)
    model.to(world.device)
    model.requires_grad_(False)
    model.scene_encoder.requires_grad_(True)
    batches = ranker.loader(config, data, model.collator(data.histories, codec))
    placed = {name: getattr(config.train, name) for name in TrainConfig.EXECUTION}
    how = config.align.model_copy(update={"seed": config.train.seed, **placed})
    fit(AlignTask(model), EveryWorker(batches), how, session.stage("align"))
    model.requires_grad_(True)
    model.scene_encoder.requires_grad_(False)
    model.weight = 0.0
    seed_everything(config.train.seed)
