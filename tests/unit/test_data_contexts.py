"""Context codes: missing, unknown and known values, and translation between vocabularies."""

import bisect

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.data.contexts import ContextCodec, ContextFeature
from raysys.errors import ConfigError

WORDS = st.sampled_from(["a", "b", "c", "d", "e"])
VALUES = st.lists(WORDS, unique=True, max_size=5)


def words(values: list[str], name: str = "word") -> ContextFeature:
    return ContextFeature(name=name, kind="categorical", values=tuple(values))


@given(values=VALUES, column=st.lists(st.none() | WORDS, max_size=8))
def test_categories_are_counted_from_two(values: list[str], column: list[str | None]) -> None:
    expected = [0 if v is None else 2 + values.index(v) if v in values else 1 for v in column]
    feature = words(values)
    assert feature.encode(pa.array(column, pa.string())).tolist() == expected
    assert feature.cardinality == 2 + len(values)


@given(
    edges=st.lists(st.floats(-9, 9), unique=True, max_size=4).map(sorted),
    column=st.lists(st.none() | st.floats(-12, 12), max_size=8),
)
def test_numbers_fall_between_edges(edges: list[float], column: list[float | None]) -> None:
    feature = ContextFeature(name="n", kind="numeric", edges=tuple(edges))
    expected = [0 if v is None else 2 + bisect.bisect_right(edges, v) for v in column]
    codes = feature.encode(pa.array(column, pa.float64()))
    assert codes.tolist() == expected
    assert max(expected, default=0) < feature.cardinality


@given(
    data=VALUES, model=VALUES, column=st.lists(st.none() | WORDS, min_size=1, max_size=8)
)  # fmt: skip
def test_translated_codes_are_those_of_the_model(
    data: list[str], model: list[str], column: list[str | None]
) -> None:
    """Encoded by the data set, then translated, is encoded by the model; what neither the data
    set nor the model knows stays unknown."""
    number = ContextFeature(name="n", kind="numeric", edges=(0.0, 1.0))
    source = ContextCodec(features=(words([], "other"), number, words(data)))
    target = ContextCodec(features=(words(model), words(["a"], "absent"), number))
    rows = [{"word": v, "n": 0.5, "other": "x"} for v in column]
    codes = source.encode_dicts(rows)
    got = target.translator(source)(codes)
    expected = target.encode_dicts([r | {"absent": None} for r in rows])
    lost = np.array([v is not None and v not in data for v in column])
    assert (got[~lost] == expected[~lost]).all()
    assert (got[lost, 0] == 1).all()
    stacked = target.translator(source)(np.stack([codes, codes]))
    assert (stacked == got).all()


def test_padding_stays_padding() -> None:
    codec = ContextCodec(features=(words(["a"]),))
    assert not codec.translator(codec)(np.zeros((2, 3, 1), np.int32)).any()


def test_other_edges_are_refused() -> None:
    one, other = (
        ContextCodec(features=(ContextFeature(name="n", kind="numeric", edges=edges),))
        for edges in ((0.0,), (1.0,))
    )
    with pytest.raises(ConfigError, match="feature n: the bucket edges"):
        one.translator(other)


def test_structs_and_dicts_give_the_same_codes() -> None:
    codec = ContextCodec(
        features=(words(["a"]), ContextFeature(name="n", kind="numeric", edges=(0.0,)))
    )
    rows = [{"word": "a", "n": 1.0}, {"word": "z", "n": None}, {"word": None, "n": -1.0}]
    kind = pa.struct([("n", pa.float64()), ("more", pa.string()), ("word", pa.string())])
    expected = [[2, 3], [1, 0], [0, 2]]
    assert codec.encode(pa.array(rows, kind)).tolist() == expected
    assert codec.encode_dicts([*rows, {}]).tolist() == [*expected, [0, 0]]
    only = pa.array([{"word": "a"}], pa.struct([("word", pa.string())]))
    assert codec.encode(only).tolist() == [[2, 0]]
