"""Train a ranker: data set → features and text vectors → training → run folder.

One program for all rankers on logged impressions; a recipe is this program with a model and
its defaults (`raysys.recipes.registry`).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor

from raysys.artifacts.ranker import Ranker
from raysys.artifacts.run import save_run
from raysys.ctr.din import DIN, DINConfig
from raysys.ctr.ranker import CTRConfig
from raysys.ctr.retrievers.fit import fit_retriever
from raysys.data.batch import Batch, Collator, Pointers
from raysys.data.catalogue import Catalogue
from raysys.data.dataset import Dataset
from raysys.data.feature_table import DatedFeature, dated_folders, read_features
from raysys.data.features import FeatureConfig, FeatureSpace, fit_contexts, fit_features
from raysys.data.prepared import Prepared, cache_root, prepare
from raysys.data.sampling import ImpressionLoader, pointers_of
from raysys.errors import ConfigError
from raysys.llm.checksums import cached_sha256
from raysys.llm.embed import embed_items
from raysys.llm.encoder import EncoderSpec
from raysys.llm.parts import FORMAT
from raysys.llm.vectors import VectorTable
from raysys.metrics import ranking
from raysys.metrics.blocks import tie_blocks
from raysys.training import (
    Loader,
    Session,
    TrainConfig,
    World,
    fit,
)

Positive = Annotated[int, Field(ge=1)]


class RankerRecipe(BaseModel):
    """Config of a ranker recipe. A subclass fixes `recipe`, `model` and its defaults.

    batch_size: impressions (candidates=all) or clicks (candidates=sampled) in one global batch.
    train_limit, valid_limit: at most so many impressions, the newest.
    feature_table: folder of the dated features that `features.tables` names; the run keeps a copy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    data: str
    vector_table: str | None = None  # default: one of data set and encoder in the cache folder
    feature_table: str | None = None
    encoder: EncoderSpec = EncoderSpec()
    features: FeatureConfig = FeatureConfig()
    model: BaseModel
    batch_size: Positive = 128
    candidates: Literal["all", "sampled"] = "all"
    negatives: Positive = 4
    train_limit: Positive | None = None
    valid_limit: Positive = 20_000
    with_histories: bool = True  # keep user histories in the run, so that it serves by itself
    train: TrainConfig = TrainConfig()

    @model_serializer(mode="wrap")
    def _serialise(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if info.context and info.context.get("identity"):
            # Where files lie does not change what is learned; the data card names the data.
            fields = {k: v for k, v in fields.items() if k not in ("data", "vector_table")}
            if self.feature_table is not None:
                fields["feature_table"] = table_sha256(self.feature_table)
        return fields


class GroupedTask(ABC):
    """Something that scores candidates, and its ranking quality on the validation split."""

    def __init__(self, data: Prepared, collator: Callable[[Pointers], Any], limit: int) -> None:
        self._data = data
        self._collator = collator
        rows = data.impressions
        valid = rows.of("valid")
        newest = valid[np.argsort(rows.ts[valid], kind="stable")[-limit:]]
        self._valid = np.sort(newest)

    @abstractmethod
    def score(self, batch: Any) -> Tensor:
        """What a batch of the collator is ranked by [B, C]."""

    def validate(self, world: World) -> dict[str, float]:
        """`gauc`: mean AUC over the groups of the data card with both labels; empty without a
        validation split."""
        if len(self._valid) == 0:
            return {}
        rows = self._data.impressions
        mine = self._valid[world.rows(len(self._valid))]
        scores = world.gather(self._scores(mine, world.device))
        flat = rows.rows(self._valid)
        counts = rows.offsets[self._valid + 1] - rows.offsets[self._valid]
        by_user = self._data.dataset.card.group_key != "impression"
        owner = rows.user[self._valid] if by_user else np.arange(len(self._valid))
        groups = np.unique(np.repeat(owner, counts), return_inverse=True)[1]
        per_group = ranking.auc(tie_blocks(scores, rows.click[flat], groups))
        defined = per_group[~np.isnan(per_group)]
        return {"gauc": float(defined.mean())} if len(defined) else {}

    def _scores(
        self, impressions: npt.NDArray[np.int64], device: torch.device
    ) -> npt.NDArray[np.float64]:
        out = [np.zeros(0)]
        for begin in range(0, len(impressions), 256):
            chosen = impressions[begin : begin + 256]
            pointers = pointers_of(self._data, chosen, labels=False)
            batch = self._collator(pointers).to(device)
            out.append(self.score(batch)[batch.candidate_mask].double().cpu().numpy())
        return np.concatenate(out)


class RankingTask(GroupedTask):
    """A ranker, its loss, and its ranking quality on the validation split."""

    def __init__(self, model: Ranker, data: Prepared, collator: Collator, limit: int) -> None:
        super().__init__(data, collator, limit)
        self.model = model

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum of losses, weight) of a micro batch."""
        return self.model.loss(batch)

    def loader(self, batches: Loader[Batch]) -> Loader[Batch]:
        """The batches of training; a task whose workers speak to each other gives each one."""
        return batches

    def score(self, batch: Batch) -> Tensor:
        """The ranker's score [B, C]."""
        return self.model(batch).score

    def settle(self) -> None:
        """After training, before the run is written: leave what only training needs."""


class EveryWorker:
    """A loader that gives an empty-handed worker a batch without labels and of weight 0."""

    def __init__(self, inner: Loader[Batch]) -> None:
        self.inner = inner
        self.steps_per_epoch = inner.steps_per_epoch

    def batch(self, epoch: int, step: int, part: int, parts: int) -> Batch | None:
        """See `Loader`; never None."""
        found = self.inner.batch(epoch, step, part, parts)
        if found is not None:
            return found
        first = self.inner.batch(epoch, step, 0, parts)
        assert first is not None
        one = first.slice(0, 1)
        labels = (one.clicks, one.orders)
        clicks, orders = (None if x is None else torch.zeros_like(x) for x in labels)
        mask = torch.zeros_like(one.candidate_mask)
        return replace(one, candidate_mask=mask, clicks=clicks, orders=orders)


class Built(NamedTuple):
    """A ranker to train, and what it is stored with; task: what its loss and validation are."""

    model: Ranker
    options: BaseModel
    features: FeatureSpace
    task: type[RankingTask] = RankingTask


# From the recipe, the settled options of its model, the data, its fitted features and catalogue.
Build = Callable[[RankerRecipe, BaseModel, Prepared, FeatureSpace, Catalogue, Session], Built]


def ready(config: RankerRecipe) -> Prepared:
    """Check data and options together, and encode the texts that have no vector yet.

    Raises:
        RaysysError: nothing can be learned from this data with these options.
    """
    dataset = Dataset(config.data)
    data = prepare(dataset)
    loader(config, data, Collator(data.histories, data.codec, 1))  # refuses constant labels
    _settled(config, data)
    dated_features(config)
    if config.features.vectors:
        embed_items(dataset, table_path(config, dataset), config.encoder, config.features.vectors)
    return data


def train(config: RankerRecipe, session: Session, build: Build | None = None) -> dict[str, Any]:
    """What every worker runs: train what `build` gives, by default the recipe's ranker, fresh;
    rank 0 writes the run folder."""
    data = prepare(Dataset(config.data))
    items = data.dataset.table("items")
    vectors, specs = encoded(config, data)
    widths = {name: values.shape[1] for name, values in vectors.items()}
    dated = dated_features(config)
    features = fit_features(data, config.features, widths, dated)
    catalogue = Catalogue.build(items, features, vectors)
    settled = _settled(config, data)
    built = (build or fresh)(config, settled, data, features, catalogue, session)
    model, features = built.model, built.features
    model.bind(catalogue)
    if isinstance(model, DIN):
        model.look_up(dated)
    collator = model.collator(data.histories, features.contexts)
    task = built.task(model, data, collator, config.valid_limit)
    result = fit(task, task.loader(loader(config, data, collator)), config.train, session)
    task.settle()
    summary = {
        "step": result.step,
        "epochs": result.epochs,
        "stopped": result.stopped,
        "kept_step": result.best_step or result.step,
        "validation": result.metrics,
        "weights_sha256": result.weights_sha256,
    }
    if World.current(config.train.device).leads:
        saved = save_run(
            session.run_dir,
            model=task.model,
            model_options=built.options,
            features=features,
            items=items,
            vectors=vectors,
            vector_specs=specs,
            recipe=config.recipe,
            recipe_options=config.model_dump(mode="json", context={"identity": True}),
            data_card=data.dataset.card,
            card_text=_card(config, data, summary),
            histories=data.histories if config.with_histories else None,
        )
        summary["model_id"] = saved.model_id
    return summary


def _settled(config: RankerRecipe, data: Prepared) -> BaseModel:
    """The model's options, with what follows the training split: whether orders are learned, if
    not given, what a retriever has to know of contexts, and what seed it draws with.

    Raises:
        ConfigError: orders are to be learned from a training split without any; a retriever
            that these data do not allow.
    """
    options = config.model
    if not isinstance(options, CTRConfig):
        return options
    rows = data.impressions
    some = bool(rows.order[rows.rows(rows.of("train"))].any())
    if options.orders and not some:
        raise ConfigError(
            f"model.orders=true, but the training split of {config.data} holds no order; "
            "leave the option out"
        )
    found: dict[str, Any] = {"orders": some if options.orders is None else options.orders}
    if isinstance(options, DINConfig):
        codec = fit_contexts(data, config.features.contexts)
        found["retriever"] = fit_retriever(options.retriever, data, codec, config.train.seed)
    return options.model_copy(update=found)


def fresh(
    config: RankerRecipe,
    options: BaseModel,
    data: Prepared,
    features: FeatureSpace,
    catalogue: Catalogue,
    session: Session,
) -> Built:
    """The recipe's ranker, untrained."""
    # Looked up by recipe, because the class of the options alone does not name the model.
    from raysys.recipes.registry import MODELS

    return Built(MODELS[config.recipe].from_config(options, features), options, features)


def loader(config: RankerRecipe, data: Prepared, collator: Collator) -> ImpressionLoader[Batch]:
    """Global batches of the training split as the recipe wants them."""
    return ImpressionLoader(
        data,
        collator,
        batch_size=config.batch_size,
        seed=config.train.seed,
        candidates=config.candidates,
        negatives=config.negatives,
        limit=config.train_limit,
    )


def dated_features(config: RankerRecipe) -> tuple[DatedFeature, ...]:
    """The dated features that the recipe names.

    Raises:
        ConfigError: they have no table, a table has none of them, or the recipe takes none.
        DataError: a damaged table.
    """
    names = config.features.tables
    if names and config.recipe != "ctr/din":
        raise ConfigError(f"features.tables: {config.recipe} takes none; choose ctr/din")
    if bool(names) != (config.feature_table is not None):
        missing, given = (
            ("feature_table", "features.tables") if names else ("features.tables", "feature_table")
        )
        raise ConfigError(f"{given} needs {missing}: the folder, and what of it is to be read")
    return () if config.feature_table is None else read_features(config.feature_table, names)


def table_sha256(table: str) -> str:
    """What a dated table holds, wherever it lies."""
    digest = hashlib.sha256()
    for folder in dated_folders(table).values():
        for file in sorted(folder.glob("*.parquet")):
            digest.update(f"{folder.name}/{file.name} {cached_sha256(file)}\n".encode())
    return digest.hexdigest()


def calls_per_epoch(config: RankerRecipe, data: Prepared) -> int:
    """How often an epoch calls the loss on every worker."""
    batches = loader(config, data, Collator(data.histories, data.codec, 1))
    return batches.steps_per_epoch * config.train.accumulation


def table_path(config: RankerRecipe, dataset: Dataset, spec: EncoderSpec | None = None) -> Path:
    """Where the frozen vectors of an encoder are, by default of the recipe's."""
    if config.vector_table is not None:
        return Path(config.vector_table)
    # A field of a table holds vectors of one encoder, so that every encoder has a table.
    name, spec = f"{dataset.manifest.hash}-v{FORMAT}", spec or config.encoder
    if spec != EncoderSpec():
        name += f"-{hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:8]}"
    return cache_root() / "vectors" / name


def encoded(
    config: RankerRecipe, data: Prepared
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, dict[str, Any]]]:
    """Frozen vectors [N, D] by field in catalogue order, and what encoded them."""
    if not config.features.vectors:
        return {}, {}
    table = VectorTable(table_path(config, data.dataset))
    encoders = table.encoders()
    ids = data.item_ids.to_pylist()
    made_by = config.encoder.identity()
    vectors = {f: table.bound("item", f, ids, made_by) for f in config.features.vectors}
    return vectors, {field: encoders["item", field] for field in config.features.vectors}


def _card(config: RankerRecipe, data: Prepared, summary: dict[str, Any]) -> str:
    card = data.dataset.card
    validation = ", ".join(f"{k} {v:.4f}" for k, v in summary["validation"].items()) or "none"
    return (
        f"# {config.recipe} on {card.dataset}\n\n"
        f"Trained for {summary['epochs']} epochs ({summary['step']} steps, stopped: "
        f"{summary['stopped']}; these are the weights of step {summary['kept_step']}), "
        f"seed {config.train.seed}. Validation: {validation}.\n\n"
        f"Data card `{card.id}`: {card.label_rule} Split: {card.split_rule}. "
        f"Licence of the data: {card.licence}.\n\n"
        "```python\n"
        "from raysys.artifacts.predictor import Predictor\n\n"
        "table = Predictor.load(RUN).score(requests)\n"
        "```\n"
    )
