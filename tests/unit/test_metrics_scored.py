"""Scored rows: the table, its checks and its file."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.errors import MetricError
from raysys.metrics.scored import SCHEMA, ScoredRows


def rows(**changes) -> ScoredRows:
    columns = {
        "impression_id": ["i1", "i1", "i2", "i2"],
        "user_id": ["u1", "u1", "u2", "u2"],
        "item_id": ["a", "b", "b", "a"],
        "score": [0.1, 0.9, 0.3, 0.2],
        "click": [0, 1, 0, 1],
        "p_click": [0.2, 0.5, 0.1, 0.1],
        "data_card_id": "abc",
        "split": "test",
        "model_id": "m",
        "empty": {"impression": 2},
    }
    return ScoredRows.of(**(columns | changes))


def test_round_trip(tmp_path) -> None:
    path = tmp_path / "scores" / "test.parquet"
    before = rows(order=[0, 1, 0, 0])
    before.write_parquet(path)
    assert [p.name for p in path.parent.iterdir()] == ["test.parquet"]
    assert pq.read_schema(path).remove_metadata().equals(SCHEMA)
    after = ScoredRows.read_parquet(path)
    assert after.to_table().equals(before.to_table(), check_metadata=True)
    assert after.p_order is None
    assert (after.data_card_id, after.split, after.model_id) == ("abc", "test", "m")
    assert after.empty == {"impression": 2}


def test_take_keeps_the_rows_and_forgets_unused_ids() -> None:
    part = rows().take(np.array([3, 2]))
    assert part.impression.values.to_pylist() == ["i2"]
    assert part.item.strings().to_pylist() == ["a", "b"]
    assert part.click.tolist() == [1, 0]
    assert rows().take(rows().click == 1).item.strings().to_pylist() == ["b", "a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": [0.1, np.nan, 0.3, 0.2]}, "score is nan in row 1 .impression 'i1'.*item 'b'"),
        ({"p_click": [0.1, 0.1, np.inf, 0.2]}, "p_click is inf in row 2"),
        ({"item_id": ["a", "b", "a", "a"]}, "duplicate item in an impression: row 3"),
        ({"user_id": ["u1", "u1", "u2", "u1"]}, "'i2'.*shared by several users|shared by several"),
        ({"click": [0, 1, 0, 3]}, "label in row 3 is 3"),
        ({"score": [0.1, 0.2]}, "differ in length"),
        ({"item_id": ["a", "b", None, "a"]}, "'item_id' has 1 missing"),
    ],
)
def test_bad_rows_name_the_row(change: dict, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        rows(**change)


def test_bad_files_name_the_file(tmp_path) -> None:
    path = tmp_path / "test.parquet"
    with pytest.raises(MetricError, match=r"test\.parquet: no scores here"):
        ScoredRows.read_parquet(path)
    rows().write_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MetricError, match=r"test\.parquet: "):
        ScoredRows.read_parquet(path)
    pq.write_table(rows().to_table().drop_columns("click"), path)
    with pytest.raises(MetricError, match="column 'click' is missing"):
        ScoredRows.read_parquet(path)
    table = rows().to_table()
    pq.write_table(table.set_column(3, "score", pa.array(["x"] * 4)), path)
    with pytest.raises(MetricError, match="column 'score' is string, not double"):
        ScoredRows.read_parquet(path)


def test_no_rows(tmp_path) -> None:
    empty = rows().take(np.array([], dtype=np.int64))
    empty.write_parquet(tmp_path / "e.parquet")
    assert len(ScoredRows.read_parquet(tmp_path / "e.parquet")) == 0
