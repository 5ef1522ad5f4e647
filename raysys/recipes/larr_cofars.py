"""Train `ctr/larr-cofars`: CoFARS chooses the past events, LARR tells the ranker the scene."""

from typing import Any, Literal, Self

from pydantic import BaseModel, model_validator

from raysys.cofars.ranker import CofarsDIN, CofarsDINConfig
from raysys.data.catalogue import Catalogue
from raysys.data.features import FeatureSpace
from raysys.data.prepared import Prepared
from raysys.larr.config import LarrConfig
from raysys.larr.fit import bind_scene
from raysys.larr.ranker import LarrDIN, LarrDINConfig
from raysys.llm.encoder import EncoderSpec
from raysys.recipes import cofars, ranker
from raysys.recipes.cofars import CofarsRecipe, with_selector
from raysys.recipes.larr import SceneTask, fit_scene, prepare_scene
from raysys.recipes.ranker import Built, RankerRecipe
from raysys.training import Session


class LarrCofarsDINConfig(LarrDINConfig, CofarsDINConfig):
    """Options of `LarrCofarsDIN`."""


class LarrCofarsDIN(LarrDIN, CofarsDIN):
    """DIN over the events that CoFARS retrieves, told the scene. Tastes and recent items are
    those of the retrieved events."""

    Config = LarrCofarsDINConfig


class LarrCofarsRecipe(CofarsRecipe):
    """`ctr/larr-cofars`; scene_encoder: see `LarrRecipe`."""

    recipe: Literal["ctr/larr-cofars"] = "ctr/larr-cofars"  # type: ignore[assignment]
    larr: LarrConfig
    scene_encoder: EncoderSpec | None = None

    @model_validator(mode="after")
    def _joint(self) -> Self:
        if self.larr.training == "staged":
            raise ValueError("larr.training=staged is to be had with ctr/larr only")
        return self


def ready(config: LarrCofarsRecipe) -> Prepared:
    """See `raysys.recipes.cofars.ready` and `raysys.recipes.larr.ready`."""
    data = cofars.ready(config)
    prepare_scene(config, config.larr, config.scene_encoder, data)
    return data


def train(config: LarrCofarsRecipe, session: Session) -> dict[str, Any]:
    """What every worker runs."""
    return ranker.train(config, session, _built)


def _built(
    config: RankerRecipe,
    options: BaseModel,
    data: Prepared,
    features: FeatureSpace,
    catalogue: Catalogue,
    session: Session,
) -> Built:
    assert isinstance(config, LarrCofarsRecipe)
    fitted, table, codec = fit_scene(
        config, config.larr, config.scene_encoder, data, features.contexts
    )
    built = with_selector(
        config,
        options,
        data,
        features,
        catalogue,
        session,
        kind=LarrCofarsDIN,
        more={"larr": fitted},
        shown=features.model_copy(update={"contexts": codec}),
    )
    assert isinstance(built.model, LarrCofarsDIN)
    bind_scene(built.model, table, data, fitted, codec)
    return built._replace(task=SceneTask)
