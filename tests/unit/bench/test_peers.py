"""The FuxiCTR layout says the same as the histories it was written from."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.peers.environment import peer_python
from bench.peers.fuxictr_data import Rows, write_fuxictr_dataset
from raysys.errors import DataError, RaysysError

ITEMS = 9


def _write(out: Path, lengths: list[int], rows: Rows) -> np.ndarray:
    start = np.concatenate([[0], np.cumsum(lengths)])
    item = np.random.default_rng(0).integers(1, ITEMS, start[-1])
    features = {"item_id": np.arange(ITEMS), "category": np.arange(ITEMS) % 4}
    sizes = {"item_id": ITEMS, "category": 4, "hour": 25}
    write_fuxictr_dataset(out, start, item, features, {"train": rows}, sizes)
    return item


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    picks=st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 6)), min_size=1, max_size=8),
)
def test_the_gathered_prefix_is_the_history(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], picks: list[tuple[int, int]]
) -> None:
    out = tmp_path_factory.mktemp("fuxi") / "data"
    user = np.array([min(u, len(lengths) - 1) for u, _ in picks])
    start = np.concatenate([[0], np.cumsum(lengths)])
    end = np.array(
        [
            0 if u < 0 else start[u] + min(k, lengths[u])
            for u, (_, k) in zip(user, picks, strict=True)
        ]
    )
    ones = np.ones(len(picks), np.int32)
    item = _write(out, lengths, Rows(user, end, ones, ones, {"hour": ones}))
    samples = pq.read_table(out / "train.parquet").to_pylist()
    sequences = pq.read_table(out / "user_info.parquet")["full_item_seq"].to_pylist()
    for sample, u, stop in zip(samples, user, end, strict=True):
        expected = [] if u < 0 else item[start[u] : stop].tolist()
        assert sequences[sample["user_index"]][: sample["seq_len"]] == expected


def test_vocabularies_reach_the_feature_map(tmp_path: Path) -> None:
    one = np.ones(1, np.int64)
    _write(tmp_path / "data", [2], Rows(0 * one, 2 * one, one, one, {"hour": one}))
    features = json.loads((tmp_path / "data" / "feature_map.json").read_text())["features"]
    sizes = {name: spec.get("vocab_size") for entry in features for name, spec in entry.items()}
    assert sizes == {
        "user_index": None, "item_index": None, "seq_len": None,
        "hour": 25, "item_id": ITEMS, "category": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("end", "item", "hour"), [(3, 1, 1), (2, ITEMS, 1), (2, 0, 1), (2, 1, 25), (-1, 1, 1)]
)
def test_impossible_rows_leave_no_folder(tmp_path: Path, end: int, item: int, hour: int) -> None:
    one = np.ones(1, np.int64)
    rows = Rows(0 * one, end * one, item * one, one, {"hour": hour * one})
    with pytest.raises(DataError):
        _write(tmp_path / "data", [2], rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_environment_that_pip_cannot_fill_is_one_error_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RaysysError, match="no-such-peer"):
        peer_python("broken", ("no-such-peer==1",), root=tmp_path)
    assert not (tmp_path / "broken").exists()


@pytest.mark.slow
def test_a_made_environment_is_used_again(tmp_path: Path) -> None:
    python = peer_python("empty", ("pip",), root=tmp_path)
    made = python.lstat().st_mtime_ns
    assert peer_python("empty", ("pip",), root=tmp_path).lstat().st_mtime_ns == made
