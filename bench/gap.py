"""How much of the gap from a baseline to the oracle a recipe closes on a planted world.

Training and scores are kept in `out`: the same command goes on where it was stopped, and a
finished seed is not trained again.
"""

from pathlib import Path
from typing import Any

from bench.equal_data import planted_world
from raysys.data.dataset import Dataset
from raysys.data.prepared import prepare
from raysys.metrics import ScoredRows, gap_share
from raysys.metrics.baselines import GBDT, baseline_metrics, compute_baselines, oracle_scores
from raysys.options import resolve
from raysys.recipes.evaluate import default_metrics, evaluate, group_key
from raysys.recipes.registry import recipe_of
from raysys.recipes.registry import run as train

BASELINES = ("popularity", *GBDT)


def run(
    recipe: str = "ctr/din",
    config: str = "raysys/configs/ctr/din-small.yaml",
    users: int = 1000,
    days: int = 60,
    world_seed: int = 7,
    seeds: int = 5,
    split: str = "test",
    out: str = "runs/bench-gap",
) -> dict[str, Any]:
    """Share of the gap in the headline metric, with intervals over `seeds` runs and over users."""
    world = planted_world(users, days, world_seed)
    data = prepare(Dataset(world))
    rows: dict[int, ScoredRows] = {}
    for seed in range(seeds):
        folder = Path(out) / f"seed-{seed}"
        given = [f"train.seed={seed}"]
        train(resolve(recipe_of(recipe), Path(config), given, {"data": str(world)}), folder)
        evaluate(folder, world, split, baselines=False)
        rows[seed] = ScoredRows.read_parquet(folder / "scores" / f"{split}.parquet")
    metric = default_metrics(rows[0], group_key(data))[0]
    scores = compute_baselines(data, split, seed=0)
    oracle = oracle_scores(data, split)
    assert oracle is not None
    gaps = {
        name: gap_share(rows, scores[name], oracle, metric) for name in BASELINES if name in scores
    }
    first = next(iter(gaps.values()))
    others = baseline_metrics(rows[0], scores, [metric])
    return {
        "bench": "gap",
        "metric": metric,
        "model": first.model.model_dump(),
        "baselines": {name: round(values[metric].value, 4) for name, values in others.items()},
        "oracle": first.oracle,
        **{
            f"closed from {name}": {
                "share": gap.share,
                "seeds": None if gap.seeds is None else [gap.seeds.low, gap.seeds.high],
                "users": [gap.users.low, gap.users.high],
            }
            for name, gap in gaps.items()
        },
        "groups": first.n_groups,
        "data_card_id": data.dataset.manifest.data_card_id,
        "recipe": recipe,
        "config": config,
        "out": out,
    }
