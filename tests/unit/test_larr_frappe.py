"""Frappe from its own layout to an evaluated `ctr/larr`."""

import json
from pathlib import Path

import numpy as np
import pytest

from raysys.data.check import check
from raysys.data.loaders import import_dataset
from raysys.options import resolve
from raysys.recipes.evaluate import evaluate
from raysys.recipes.registry import recipe_of, run

CONFIG = Path(__file__).parents[2] / "raysys" / "configs" / "ctr" / "larr-frappe.yaml"
DAYTIMES = ("morning", "noon", "afternoon", "evening", "night")
KINDS = ("News", "Maps", "Games", "Chat", "Music")
USERS, APPS = 30, 40


def write(folder: Path) -> Path:
    """At each time of the day people open apps of one kind; the weather is often unknown."""
    rng = np.random.default_rng(4)
    rows, seen = [], set()
    for user in range(USERS):
        for _ in range(30):
            time = int(rng.integers(len(DAYTIMES)))
            kind = time if rng.random() < 0.8 else int(rng.integers(len(KINDS)))
            app = kind + len(KINDS) * int(rng.integers(APPS // len(KINDS)))
            day = ("monday", "saturday")[int(rng.integers(2))]
            end = {"monday": "workday", "saturday": "weekend"}[day]
            sky = ("sunny", "unknown")[int(rng.integers(2))]
            where = ("home", "work", "unknown")[int(rng.integers(3))]
            row = (user, app, 1, DAYTIMES[time], day, end, where, "free", sky, "Spain", 0)
            if row not in seen:
                seen.add(row)
                rows.append("\t".join(map(str, row)))
    head = "user\titem\tcnt\tdaytime\tweekday\tisweekend\thomework\tcost\tweather\tcountry\tcity"
    folder.mkdir(parents=True)
    (folder / "frappe.csv").write_text("\n".join([head, *rows]) + "\n")
    head = (
        "item\tpackage\tcategory\tdownloads\tdeveloper\ticon\tlanguage\tdescription\tname\tprice\t"
        "rating\tshort desc"
    )
    apps = [
        f"{n}\tcom.app{n}\t{KINDS[n % 5]}\t1,000\tdev{n % 7}\thttp://i\ten\t"
        f"{KINDS[n % 5]} for everybody, number {n}\tApp {n}\tFree\t4.1\tGood {KINDS[n % 5]}"
        for n in range(APPS)
    ]
    (folder / "meta.csv").write_text("\n".join([head, *apps]) + "\n")
    return folder


@pytest.mark.slow
def test_frappe_trains_and_evaluates_from_its_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    import_dataset("frappe", write(tmp_path / "src"), tmp_path / "data", {"negatives": 9})
    assert check(tmp_path / "data").ok
    over = ["batch_size=32", "train.epochs=6", "train.lr=0.01", "train.early_stopping=null"]
    config = resolve(recipe_of("ctr/larr"), CONFIG, over, {"data": str(tmp_path / "data")})
    run(config, tmp_path / "run", show_progress=False)
    result = evaluate(tmp_path / "run", tmp_path / "data", replicates=100)
    found = {name: value.value for name, value in result.model.items()}
    # The time of the day tells the kind of app, which popularity cannot know.
    assert found["gauc_mean@impression"] > 0.7
    assert result.baselines["popularity"]["gauc_mean@impression"].value < 0.65
    assert "gbdt_pointwise" in result.baselines
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["split"] == "test"
