"""`ctr/din` and `ctr/cofars` from files in the layouts of EB-NeRD and TRD to an evaluation."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_loader_trd import write as write_trd

from raysys.data.loaders import import_dataset
from raysys.options import resolve
from raysys.recipes.evaluate import evaluate
from raysys.recipes.registry import recipe_of, run

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "raysys" / "configs" / "ctr"
SMALL = [
    "train.epochs=8", "train.lr=0.01", "train.early_stopping=null", "batch_size=16",
    "features.min_count=1",
]  # fmt: skip
SELECTOR = [
    "cofars.preferences.support=2", "cofars.encoder.dim=8", "cofars.encoder.prototypes=4",
    "cofars.lists.events=10", "selector.warm_up.epochs=1", "selector.batch_size=16",
]  # fmt: skip
MINUTE = pd.Timedelta(minutes=1)
DAY = pd.Timedelta(days=1)
FIRST = pd.Timestamp(2023, 5, 18, 6)
ARTICLES = np.arange(100, 140)  # even ones are sport


def write_ebnerd(folder: Path) -> Path:
    """Whoever is shown sport opens it; each of 30 users has 20 past reads."""
    draw = np.random.default_rng(0)
    users = np.arange(30)
    number = 0
    for part, first, days in (("train", FIRST, 4), ("validation", FIRST + 7 * DAY, 1)):
        rows = []
        for day in range(days):
            for user in users:
                shown = draw.permutation(ARTICLES)[:5]
                wanted = shown[shown % 2 == 0]
                clicked = wanted[:1] if len(wanted) else shown[:1]
                number += 1
                rows.append(
                    {
                        "impression_id": number, "user_id": user,
                        "impression_time": first + day * DAY + int(draw.integers(900)) * MINUTE,
                        "device_type": 1 + number % 3, "is_subscriber": number % 2 == 0,
                        "article_id": 100 if number % 4 else None,
                        "article_ids_inview": shown.tolist(),
                        "article_ids_clicked": clicked.tolist(),
                        "next_read_time": float(draw.integers(60)),
                    }
                )  # fmt: skip
        (folder / part).mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(folder / part / "behaviors.parquet")
        liked = [draw.choice(ARTICLES, 20) for _ in users]
        start = FIRST - 10 * DAY
        times = [np.sort(start + draw.integers(0, 9 * 1440, 20) * MINUTE) for _ in users]
        pd.DataFrame(
            {
                "user_id": users, "impression_time_fixed": times, "article_id_fixed": liked,
                "read_time_fixed": [[40.0] * 20 for _ in users],
            }
        ).to_parquet(folder / part / "history.parquet")  # fmt: skip
    pd.DataFrame(
        {
            "article_id": ARTICLES, "title": [f"T{n}" for n in ARTICLES],
            "category_str": ["politics" if n % 2 else "sport" for n in ARTICLES],
            "premium": ARTICLES % 3 == 0,
        }
    ).to_parquet(folder / "articles.parquet")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ebnerd")
    import_dataset("ebnerd", write_ebnerd(root / "src"), root / "data")
    return root / "data"


@pytest.mark.parametrize("recipe", ["ctr/din", "ctr/cofars"])
def test_ebnerd_from_files_to_an_evaluation(recipe: str, news: Path, tmp_path: Path) -> None:
    name = "din-small" if recipe == "ctr/din" else "cofars-ebnerd"
    over = [*SMALL, *(SELECTOR if recipe == "ctr/cofars" else [])]
    config = resolve(recipe_of(recipe), CONFIGS / f"{name}.yaml", over, {"data": str(news)})
    run(config, tmp_path / "run", show_progress=False)
    found = evaluate(tmp_path / "run", news, replicates=50)
    values = {key: value.value for key, value in found.model.items()}
    assert found.groups["n_rows"] == 30 * 5
    # The category tells what is opened; by chance it would be 0.5.
    assert values["gauc_mean@impression"] > 0.65
    assert 0 < values["auc_ctcvr"] < 1


def test_cofars_trains_on_the_trd_layout(tmp_path: Path) -> None:
    data = tmp_path / "data"
    import_dataset("trd", write_trd(tmp_path / "src"), data, {"negatives": 2})
    over = [
        *SMALL, *SELECTOR, "train.epochs=1",
        # Delivery scores are all alike in these files.
        "cofars.preferences.attributes.fields=[{source: 'category:1'}, "
        "{source: 'attribute:price_interval'}, {source: 'attribute:quality', buckets: 3}]",
    ]  # fmt: skip
    config = resolve(
        recipe_of("ctr/cofars"), CONFIGS / "cofars-trd.yaml", over, {"data": str(data)}
    )
    run(config, tmp_path / "run", show_progress=False)
    found = evaluate(tmp_path / "run", data, replicates=50)
    assert found.groups["n_rows"] == 14 * 3
