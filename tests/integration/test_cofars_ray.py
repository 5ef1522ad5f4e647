"""`ctr/cofars` on Ray Train: all stages on one and two workers, and in this process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_toy import toy_ray
from tune_toy import cofars_options, tiny_world

from raysys.errors import ConfigError
from raysys.recipes.registry import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("cofars") / "world")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with toy_ray():
        yield


def trained(world: Path, folder: Path, workers: int, **changes: Any) -> dict[str, Any]:
    config = cofars_options(world, **{"train.workers": workers, **changes}).base
    return run(config, folder, show_progress=False).result


@pytest.fixture(scope="module")
def here(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here") / "run"
    trained(world, folder, workers=0)
    return folder


def steps(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """Kind and step of each record, by stage."""
    logs = {path.parent.name: path for path in folder.glob("checkpoints/*/metrics.jsonl")}
    logs["ranker"] = folder / "metrics.jsonl"
    return {
        name: [(record["kind"], record["step"]) for record in map(json.loads, path.open())]
        for name, path in logs.items()
    }


def test_one_worker_is_this_process_bit_for_bit(world: Path, here: Path, tmp_path: Path) -> None:
    trained(world, tmp_path / "run", workers=1)
    for name in ("model.safetensors", "features.json"):
        assert (tmp_path / "run" / name).read_bytes() == (here / name).read_bytes()
    for name in ("lists.json", "histories"):
        stored = Path("indexes", "cofars", name)
        assert (tmp_path / "run" / stored).read_text() == (here / stored).read_text()


def test_two_workers_learn_the_same(world: Path, here: Path, tmp_path: Path) -> None:
    result = trained(world, tmp_path / "run", workers=2)
    one, two = (load_file(path / "model.safetensors") for path in (here, tmp_path / "run"))
    assert one.keys() == two.keys()
    for name, values in one.items():
        # A gate's log scale stands far from zero: of what is above one, the share counts.
        torch.testing.assert_close(two[name], values, rtol=1e-5, atol=1e-5, msg=name)
    assert steps(tmp_path / "run") == steps(here)
    assert set(steps(here)) == {"warm-up", "selector", "ranker"}
    # The same command again finds the run finished.
    assert trained(world, tmp_path / "run", workers=2) == result


def test_a_fault_of_the_fit_ends_the_command_with_its_message(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cofars\.contexts\.features: mealtime, place, weather"):
        trained(world, tmp_path / "run", workers=2, **{"features.contexts": ["day"]})
    assert not (tmp_path / "run").exists()
