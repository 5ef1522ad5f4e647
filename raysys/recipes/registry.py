"""Recipes by name: which model, which defaults, which program."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from raysys.artifacts.ranker import Ranker
from raysys.artifacts.run import verify_run
from raysys.cofars.ranker import CofarsDIN
from raysys.ctr.dcnv2 import DCNv2, DCNv2Config
from raysys.ctr.din import DIN, DINConfig
from raysys.ctr.finalmlp import FinalMLP, FinalMLPConfig
from raysys.data.dataset import Dataset
from raysys.data.manifest import DataCard
from raysys.data.prepared import Prepared
from raysys.errors import ConfigError
from raysys.hkfr.samples import Samples
from raysys.homodistil.corpus import has_part
from raysys.larr.ranker import LarrDIN
from raysys.news.kred import KRED
from raysys.news.lstur import LSTUR
from raysys.news.naml import NAML
from raysys.news.nrms import NRMS
from raysys.perconet.ranker import Perconet
from raysys.recipes import (
    cofars,
    homodistil,
    larr,
    larr_cofars,
    larr_stages,
    llm_contrast,
    llm_instruct,
    llm_pretrain,
    news,
    perconet,
    ranker,
)
from raysys.recipes.cofars import CofarsRecipe
from raysys.recipes.homodistil import HomoDistilRecipe
from raysys.recipes.larr import LarrRecipe
from raysys.recipes.larr_cofars import LarrCofarsDIN, LarrCofarsRecipe
from raysys.recipes.llm import LlmRecipe
from raysys.recipes.llm_contrast import ContrastRecipe
from raysys.recipes.llm_instruct import InstructRecipe
from raysys.recipes.llm_pretrain import PretrainRecipe
from raysys.recipes.news import KREDRecipe, LSTURRecipe, NAMLRecipe, NRMSRecipe
from raysys.recipes.perconet import PerconetRecipe
from raysys.recipes.ranker import RankerRecipe
from raysys.training import EarlyStopping, Outcome, Reporter, Session, TrainConfig, launch

_CTR_TRAIN = TrainConfig(
    epochs=10, lr=1e-3, weight_decay=1e-4, early_stopping=EarlyStopping(metric="gauc", patience=2)
)


class DINRecipe(RankerRecipe):
    """`ctr/din`."""

    recipe: Literal["ctr/din"] = "ctr/din"
    model: DINConfig = DINConfig()
    train: TrainConfig = _CTR_TRAIN


class DCNv2Recipe(RankerRecipe):
    """`ctr/dcnv2`."""

    recipe: Literal["ctr/dcnv2"] = "ctr/dcnv2"
    model: DCNv2Config = DCNv2Config()
    train: TrainConfig = _CTR_TRAIN


class FinalMLPRecipe(RankerRecipe):
    """`ctr/finalmlp`."""

    recipe: Literal["ctr/finalmlp"] = "ctr/finalmlp"
    model: FinalMLPConfig = FinalMLPConfig()
    train: TrainConfig = _CTR_TRAIN


Recipe = RankerRecipe | LlmRecipe | HomoDistilRecipe
RECIPES: dict[str, type[RankerRecipe] | type[LlmRecipe] | type[HomoDistilRecipe]] = {
    "ctr/din": DINRecipe,
    "ctr/dcnv2": DCNv2Recipe,
    "ctr/finalmlp": FinalMLPRecipe,
    "ctr/cofars": CofarsRecipe,
    "ctr/larr": LarrRecipe,
    "ctr/larr-cofars": LarrCofarsRecipe,
    "news/nrms": NRMSRecipe,
    "news/naml": NAMLRecipe,
    "news/lstur": LSTURRecipe,
    "news/kred": KREDRecipe,
    "news/perconet": PerconetRecipe,
    "llm/pretrain": PretrainRecipe,
    "llm/contrast": ContrastRecipe,
    "llm/instruct": InstructRecipe,
    "llm/homodistil": HomoDistilRecipe,
}
MODELS: dict[str, type[Ranker]] = {
    "ctr/din": DIN,
    "ctr/dcnv2": DCNv2,
    "ctr/finalmlp": FinalMLP,
    "ctr/cofars": CofarsDIN,
    "ctr/larr": LarrDIN,
    "ctr/larr-cofars": LarrCofarsDIN,
    "news/nrms": NRMS,
    "news/naml": NAML,
    "news/lstur": LSTUR,
    "news/kred": KRED,
    "news/perconet": Perconet,
}
# What every worker of a recipe runs, and its check of data and options together.
Checked = Prepared | Dataset | Samples
Program = tuple[Callable[[Any, Session], dict[str, Any]], Callable[[Any], Checked]]
_RANKER: Program = (ranker.train, ranker.ready)
_PROGRAMS: dict[str, Program] = {
    "ctr/cofars": (cofars.train, cofars.ready),
    "ctr/larr": (larr.train, larr.ready),
    "ctr/larr-cofars": (larr_cofars.train, larr_cofars.ready),
    "news/kred": (news.train, news.ready),
    "news/perconet": (perconet.train, perconet.ready),
    "llm/pretrain": (llm_pretrain.train, larr_stages.ready),
    "llm/contrast": (llm_contrast.train, llm_contrast.ready),
    "llm/instruct": (llm_instruct.train, llm_instruct.ready),
    "llm/homodistil": (homodistil.train, homodistil.ready),
}


def recipe_of(name: str) -> type[RankerRecipe] | type[LlmRecipe] | type[HomoDistilRecipe]:
    """The config class of a recipe.

    Raises:
        ConfigError: no such recipe; names the nearest.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"no recipe is called {name!r}; {hint}There are {', '.join(RECIPES)}")
    return RECIPES[name]


def ready(config: Recipe) -> Checked:
    """Check data and options together; see `raysys.recipes.ranker.ready`."""
    return _PROGRAMS.get(config.recipe, _RANKER)[1](config)


def card_of(data: Checked) -> DataCard:
    """The card of what `ready` has checked."""
    return data.dataset.card if isinstance(data, Prepared) else data.card


def validates(data: Checked) -> bool:
    """Whether what `ready` has checked has a validation split."""
    match data:
        case Prepared():
            return len(data.impressions.of("valid")) > 0
        case Samples():
            return bool(data.of("valid", 1))
        case _:
            return has_part(data, "valid")


def run(
    config: Recipe,
    out: Path,
    *,
    allow_code_change: bool = False,
    show_progress: bool = True,
    reporter: Reporter | None = None,
    wait_s: float = 0.0,
) -> Outcome:
    """Train to the end, or go on where an earlier launch of the same command stopped.

    reporter, wait_s: as for `raysys.training.launch`.

    Raises:
        RaysysError: bad data or options; nothing is left behind if nothing had been learned.
    """
    return launch(
        _PROGRAMS.get(config.recipe, _RANKER)[0],
        config,
        config.train,
        out,
        data_card_id=card_of(ready(config)).id,
        verify=verify_run,
        allow_code_change=allow_code_change,
        show_progress=show_progress,
        reporter=reporter,
        wait_s=wait_s,
    )
