"""What `bench embed` counts and compares."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_fixtures import log

from bench.embed import _calls, _texts, run
from raysys.data.dataset import Dataset
from raysys.errors import ConfigError

NAMES = ["soup", "bread", "soup", None, "tea", " ", "rice", "bread", "pie", "egg"]


def written(folder: Path, impressions: int = 12) -> Path:
    rows = log(0, impressions=impressions)
    for item, name in zip(rows.items, NAMES, strict=True):
        item["name"] = name
    return rows.write(folder)


def test_calls_per_1000_requests_are_those_of_the_log(tmp_path: Path) -> None:
    path = written(tmp_path / "data")
    rows = [r for f in sorted(path.glob("impressions/*")) for r in pq.read_table(f).to_pylist()]
    has = {f"i{n}" for n, name in enumerate(NAMES) if name and name.strip()}
    shown = sum(item in has for row in rows for item in row["candidates"])
    calls = _calls(Dataset(path), "name", 5, tmp_path)
    distinct = len({name for name in NAMES if name and name.strip()})
    assert calls == {
        "naive": 1000 * shown / len(rows),
        "offline": 1000 * distinct / len(rows),
        "online": 0,
    }


def test_texts_are_distinct_and_drawn_by_the_seed(tmp_path: Path) -> None:
    dataset = Dataset(written(tmp_path / "data"))
    everything = _texts(dataset, "name", 100, 0)
    assert sorted(everything) == ["bread", "egg", "pie", "rice", "soup", "tea"]
    assert _texts(dataset, "name", 3, 0) == everything[:3]
    assert _texts(dataset, "name", 100, 1) != everything


def test_a_set_without_impressions_is_refused(tmp_path: Path) -> None:
    dataset = Dataset(written(tmp_path / "data", impressions=0))
    with pytest.raises(ConfigError, match="no impressions"):
        _calls(dataset, "name", 5, tmp_path)


@pytest.mark.slow
def test_ours_and_theirs_give_the_same_vectors(tmp_path: Path) -> None:
    found = run(data=str(written(tmp_path / "data")), field="name", rounds=1, threads=1, vllm=False)
    assert found["smallest_cosine"] > 0.99999
    assert set(found["texts_per_s"]) == {"sentence_transformers", "transformers"}
    assert found["llm_calls_per_1000_requests"]["online"] == 0
