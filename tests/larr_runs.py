"""A small planted city and tiny `ctr/larr` and `ctr/larr-cofars` runs on it."""

from pathlib import Path

from raysys.data.mapping import LocalMapper
from raysys.data.world import WorldConfig, make_world
from raysys.options import resolve
from raysys.recipes.ranker import RankerRecipe
from raysys.recipes.registry import recipe_of

CONFIGS = Path(__file__).parents[1] / "raysys" / "configs" / "ctr"
TINY = [
    "model.embedding_dim=4", "model.attention_hidden=[8]", "model.hidden=[16]", "batch_size=16",
    "train.epochs=2", "train.early_stopping=null", "larr.encoder.width=8", "larr.encoder.heads=2",
    "larr.encoder.head=8",
]  # fmt: skip
TINY_COFARS = [
    "cofars.lists.events=12", "cofars.encoder.dim=8", "cofars.encoder.hidden=[16]",
    "cofars.encoder.prototypes=4", "cofars.preferences.support=5", "selector.batch_size=16",
    "selector.warm_up.epochs=1",
]  # fmt: skip


def small_city(out: Path) -> None:
    """60 users, 120 places, 20 days of meals; some test requests use words nobody used before."""
    make_world(
        WorldConfig(kind="food", users=60, pois=120, days=20, seed=3, new_value_share=0.2),
        out,
        LocalMapper(),
    )


def tiny(recipe: str, world: Path, *over: str) -> RankerRecipe:
    """A config of ctr/larr or ctr/larr-cofars that trains in seconds."""
    more = TINY_COFARS if recipe == "ctr/larr-cofars" else []
    file = CONFIGS / f"{recipe.partition('/')[2]}-small.yaml"
    return resolve(recipe_of(recipe), file, [*TINY, *more, *over], {"data": str(world)})
