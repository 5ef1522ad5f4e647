"""Train `news/perconet`: frozen text vectors and entities → persona, contrast, ranker.

The reconstruction is described in docs/perconet.md.
"""

from contextlib import suppress
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, model_validator

from raysys.artifacts.predictor import Predictor
from raysys.data.batch import Batch
from raysys.data.catalogue import Catalogue
from raysys.data.dataset import Dataset
from raysys.data.features import FeatureConfig, FeatureSpace
from raysys.data.prepared import Prepared, prepare
from raysys.errors import ConfigError
from raysys.news.entities import EntityFit, fit_entities
from raysys.news.words import fit_words, pretrained_vectors
from raysys.options import merge
from raysys.perconet.config import PerconetConfig, PerconetOptions
from raysys.perconet.fit import fit_placebo
from raysys.perconet.news import WordNewsEncoder
from raysys.perconet.pictures import pictures
from raysys.perconet.presets import PRESETS
from raysys.perconet.ranker import Perconet
from raysys.perconet.views import text_groups
from raysys.recipes import ranker
from raysys.recipes.news import NewsRecipe
from raysys.recipes.ranker import Built, EveryWorker, RankerRecipe, RankingTask, calls_per_epoch
from raysys.tracking.figures import write_figure
from raysys.training import Loader, Session, World


class PerconetRecipe(NewsRecipe):
    """`news/perconet`.

    preset: an arm of the fair test, e.g. P2 for the persona alone, whose options are laid upon
    `model`. features.vectors: left out, those that the model reads.
    """

    recipe: Literal["news/perconet"] = "news/perconet"
    preset: str | None = None
    features: FeatureConfig = FeatureConfig(items=(), contexts=())
    model: PerconetOptions = PerconetOptions()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        model = given.get("model", {})
        if given.get("preset") is not None and isinstance(model, dict):
            if given["preset"] not in PRESETS:
                raise ValueError(f"preset: {given['preset']!r} is none of {', '.join(PRESETS)}")
            model = merge(model, PRESETS[given["preset"]])
        features = given.get("features", {})
        if isinstance(features, dict):
            features = {"items": (), "contexts": (), **features}  # not those of FeatureConfig
            # A fault of the model's is told of the model, below.
            with suppress(ValidationError):
                read = PerconetOptions.model_validate(model).vectors
                features = {**features, "vectors": features.get("vectors") or read}
        return {**given, "model": model, "features": features}


class PerconetTask(RankingTask):
    """The cross-view loss compares the news of all workers, so each has to be there."""

    def loader(self, batches: Loader[Batch]) -> Loader[Batch]:
        """See `RankingTask`."""
        return EveryWorker(batches)


def ready(config: PerconetRecipe) -> Prepared:
    """See `raysys.recipes.ranker.ready`."""
    if config.candidates != "sampled":
        raise ConfigError("news/perconet learns from candidates=sampled only")
    data = ranker.ready(config)
    if config.model.user != "latent":
        fit_entities(data, config.model.persona)
    if config.model.encoder != "frozen":
        words = fit_words(data, config.model.words, config.model.fields)
        pretrained_vectors(words, config.model.words)  # refuses a bad file before anything starts
    return data


def train(config: PerconetRecipe, session: Session) -> dict[str, Any]:
    """What every worker runs; the first also draws what the report shows of personas."""
    found = ranker.train(config, session, _built)
    if config.model.user != "latent" and World.current(config.train.device).leads:
        data = prepare(Dataset(config.data))
        predictor = Predictor.load(session.run_dir, histories=data.histories)
        for name, figure in pictures(predictor, data, readers=config.with_histories).items():
            write_figure(session.run_dir, name, figure)
    return found


def _built(
    config: RankerRecipe,
    options: BaseModel,
    data: Prepared,
    features: FeatureSpace,
    catalogue: Catalogue,
    session: Session,
) -> Built:
    assert isinstance(options, PerconetOptions)
    persona, table, fitted = options.persona, None, None
    if options.user != "latent":
        table = fit_entities(data, persona)
        fitted = EntityFit.of(table, persona, calls_per_epoch(config, data))
    words = None
    if options.encoder != "frozen":
        words = fit_words(data, options.words, options.fields)
    count = None if words is None else len(words)
    settled = PerconetConfig(**dict(options), fitted=fitted, fitted_words=count)
    model = Perconet.from_config(settled, features)
    if words is not None:
        assert isinstance(model.items, WordNewsEncoder)
        model.bind_words(words)
        known = pretrained_vectors(words, options.words)
        if known is not None:
            model.items.start_from(known)
    if table is not None:
        model.bind_entities(table, fit_placebo(data, table, persona))
    if options.contrast.weight:
        model.bind_texts(text_groups(data.dataset.table("items", ["title", "abstract"])))
    return Built(model, settled, features, PerconetTask)
