"""Train a news ranker: one click against four non-clicks of its impression."""

from typing import Any, Literal

from pydantic import BaseModel

from raysys.data.catalogue import Catalogue
from raysys.data.features import FeatureConfig, FeatureSpace
from raysys.data.prepared import Prepared
from raysys.news.entities import EntityFit, fit_entities
from raysys.news.kred import KRED, KREDConfig, KREDOptions
from raysys.news.nrms import NRMSConfig
from raysys.news.views import ViewConfig
from raysys.recipes import ranker
from raysys.recipes.ranker import Built, Positive, RankerRecipe, calls_per_epoch
from raysys.training import EarlyStopping, Session, TrainConfig

NEWS_TRAIN = TrainConfig(
    epochs=10, lr=5e-4, weight_decay=1e-4, early_stopping=EarlyStopping(metric="gauc", patience=3)
)
_TITLES = FeatureConfig(items=(), contexts=(), vectors=("title",))


class NewsRecipe(RankerRecipe):
    """Defaults of all `news/...` recipes: titles as frozen vectors, no item fields."""

    features: FeatureConfig = _TITLES
    batch_size: Positive = 64
    candidates: Literal["all", "sampled"] = "sampled"
    train: TrainConfig = NEWS_TRAIN


class NRMSRecipe(NewsRecipe):
    """`news/nrms`."""

    recipe: Literal["news/nrms"] = "news/nrms"
    model: NRMSConfig = NRMSConfig()


class NAMLRecipe(NewsRecipe):
    """`news/naml`; features.items: the category and other fields that are views."""

    recipe: Literal["news/naml"] = "news/naml"
    model: ViewConfig = ViewConfig()


class LSTURRecipe(NewsRecipe):
    """`news/lstur`; features.items as for `news/naml`."""

    recipe: Literal["news/lstur"] = "news/lstur"
    model: ViewConfig = ViewConfig()


class KREDRecipe(NewsRecipe):
    """`news/kred`; the data set's news must name entities."""

    recipe: Literal["news/kred"] = "news/kred"
    model: KREDOptions = KREDOptions()


def ready(config: KREDRecipe) -> Prepared:
    """See `raysys.recipes.ranker.ready`."""
    data = ranker.ready(config)
    fit_entities(data, config.model.entity)
    return data


def train(config: KREDRecipe, session: Session) -> dict[str, Any]:
    """What every worker runs to train `news/kred`."""
    return ranker.train(config, session, _with_entities)


def _with_entities(
    config: RankerRecipe,
    options: BaseModel,
    data: Prepared,
    features: FeatureSpace,
    catalogue: Catalogue,
    session: Session,
) -> Built:
    assert isinstance(options, KREDOptions)
    table = fit_entities(data, options.entity)
    fitted = EntityFit.of(table, options.entity, calls_per_epoch(config, data))
    settled = KREDConfig(**dict(options), fitted=fitted)
    model = KRED.from_config(settled, features)
    model.bind_entities(table)
    return Built(model, settled, features)
