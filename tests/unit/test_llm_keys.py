"""Keys of the vector table: defined by canonical JSON, found in bulk."""

import hashlib
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.data.manifest import canonical_json
from raysys.errors import DataError
from raysys.llm.keys import (
    SortedKeys,
    VectorIdentity,
    distinct,
    keys_of_arrow,
    keys_of_bytes,
    keys_to_arrow,
    sort_keys,
    text_keys,
)

IDENTITY = VectorIdentity(
    weights="ab" * 32, pooling="mean", max_tokens=256, normalise=True, template="plain@1"
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
# A tiny alphabet makes halves of keys meet, which random ones never do.
HALVES = st.integers(0, 3)
KEYS = st.lists(st.tuples(HALVES, HALVES), max_size=40).map(
    lambda pairs: np.array(pairs, np.uint64).reshape(-1, 2)
)


def reference_key(identity: VectorIdentity, text: str) -> bytes:
    fields = {**identity.model_dump(), "text": unicodedata.normalize("NFC", text)}
    return hashlib.sha256(canonical_json(fields).encode()).digest()[:16]


@given(st.lists(TEXTS, max_size=8))
def test_key_is_the_hash_of_the_canonical_json(texts: list[str]) -> None:
    expected = [reference_key(IDENTITY, text) for text in texts]
    assert text_keys(IDENTITY, texts).astype(">u8").tobytes() == b"".join(expected)


def test_equal_characters_have_equal_keys_however_they_are_composed() -> None:
    keys = text_keys(IDENTITY, ["caf\u00e9", "cafe\u0301", "cafe"])
    assert (keys[0] == keys[1]).all()
    assert (keys[0] != keys[2]).any()


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "cd" * 32},
        {"adapter": "ef" * 32},
        {"pooling": "cls"},
        {"head": "mlp"},
        {"max_tokens": 128},
        {"normalise": False},
        {"template": "query@1"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_key_depends_on_every_part_of_the_identity(change: dict[str, object]) -> None:
    other = IDENTITY.model_copy(update=change)
    assert (text_keys(IDENTITY, ["a text"]) != text_keys(other, ["a text"])).any()


def test_text_that_is_not_unicode_is_named() -> None:
    with pytest.raises(DataError, match="not valid Unicode"):
        text_keys(IDENTITY, ["fine", "torn \ud800 text"])


@given(KEYS, KEYS)
def test_bulk_search_finds_what_a_dictionary_finds(stored: np.ndarray, asked: np.ndarray) -> None:
    stored = np.unique(stored, axis=0)
    ranked = stored[sort_keys(stored)]
    place = {tuple(key): row for row, key in enumerate(ranked.tolist())}
    expected = [place.get(tuple(key), -1) for key in asked.tolist()]
    found = SortedKeys(ranked[:, 0].copy(), ranked[:, 1].copy()).find(asked)
    assert found.tolist() == expected


@given(KEYS)
def test_distinct_names_each_key_once(keys: np.ndarray) -> None:
    first, inverse = distinct(keys)
    assert len(first) == len({tuple(key) for key in keys.tolist()})
    assert (keys[first][inverse] == keys).all()


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=10), st.data())
def test_arrow_round_trip_and_byte_order(raw: list[bytes], data: st.DataObject) -> None:
    keys = keys_of_bytes(b"".join(raw))
    column = keys_to_arrow(keys)
    assert column.to_pylist() == raw
    begin = data.draw(st.integers(0, len(raw)))
    assert (keys_of_arrow(column.slice(begin)) == keys[begin:]).all()
    assert [raw[row] for row in sort_keys(keys)] == sorted(raw)


def test_empty_column() -> None:
    empty = pa.array([], pa.binary(16))
    assert keys_of_arrow(empty).shape == (0, 2)
    assert text_keys(IDENTITY, []).shape == (0, 2)
