"""Features: what each encoding gives, and that only the training part is looked at."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_fixtures import ITEMS, Log, log

from raysys.data.catalogue import Catalogue
from raysys.data.contexts import ContextCodec
from raysys.data.dataset import Dataset
from raysys.data.features import (
    BucketField,
    FeatureConfig,
    FeatureSpace,
    HashField,
    VocabularyField,
    fit_features,
    text_column,
    training_item_counts,
)
from raysys.data.prepared import Prepared, prepare
from raysys.data.schema import ITEMS as ITEMS_SCHEMA
from raysys.errors import ConfigError

TABLE = pa.Table.from_pylist(log(0).items, ITEMS_SCHEMA)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))


def opened(rows: Log, folder: Path) -> Prepared:
    return prepare(Dataset(rows.write(folder)))


def test_sources_name_columns() -> None:
    rows = log(0).items
    for source, expected in {
        "item_id": ITEMS,
        "brand": [r["brand"] for r in rows],
        "area": [None] * 10,
        "category:0": [(r["category"] or [None])[0] for r in rows],
        "category:1": [r["category"][1] if len(r["category"] or []) > 1 else None for r in rows],
        "attribute:size": [dict(r["attributes"] or []).get("size") for r in rows],
        "attribute:none": [None] * 10,
    }.items():
        assert text_column(TABLE, source).to_pylist() == expected
    for source in ("colour", "category:x", "attribute:", "price"):
        with pytest.raises(ConfigError, match=rf"item field source '{source}' is unknown; use"):
            text_column(TABLE, source)


def test_vocabulary_hash_and_buckets_by_hand() -> None:
    brands = [r["brand"] for r in log(0).items]
    known = VocabularyField(source="brand", values=("b1", "b2"))
    assert known.encode(TABLE).tolist() == [{None: 0, "b1": 2, "b2": 3}.get(b, 1) for b in brands]
    assert known.cardinality == 4

    hashed = HashField(source="brand", buckets=7)
    expected = [
        0 if b is None else 2 + int(hashlib.sha256(b.encode()).hexdigest()[:16], 16) % 7
        for b in brands
    ]
    assert hashed.encode(TABLE).tolist() == expected
    assert hashed.cardinality == 9

    prices = [r["price"] for r in log(0).items]
    bucket = BucketField(source="price", edges=(2.0, 6.5))
    expected = [0 if p is None else 2 + (p >= 2.0) + (p >= 6.5) for p in prices]
    assert bucket.encode(TABLE).tolist() == expected
    assert bucket.cardinality == 5


def test_rows_of_padding_and_of_the_unknown_item() -> None:
    space = FeatureSpace(
        items=(
            VocabularyField(source="item_id", values=tuple(ITEMS[:3])),
            HashField(source="brand", buckets=5),
        ),
        contexts=ContextCodec(),
    )
    codes = space.encode_items(TABLE)
    assert codes.shape == (12, 2)
    assert codes[:2].tolist() == [[0, 0], [1, 1]]
    assert codes[2:, 0].tolist() == [2, 3, 4] + [1] * 7
    assert (codes < np.array(space.item_cardinalities)).all()
    vectors = {"title": np.ones((10, 3), np.float32)}
    catalogue = Catalogue.build(TABLE, space, vectors)
    assert catalogue.vectors["title"].sum(1).tolist() == [0, 0] + [3] * 10
    rows = catalogue.rows(["i3", None, "nowhere", "i0"])
    assert rows.tolist() == [5, 1, 1, 2]
    assert catalogue.ids(rows[[0, 3]]).to_pylist() == ["i3", "i0"]


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_training_counts_are_those_of_the_rows(tmp_path: Path, seed: int, timed: bool) -> None:
    rows = log(seed, timed=timed)
    data = opened(rows, tmp_path / "data")
    expected = dict.fromkeys(ITEMS, 0)
    unknown = 0
    train = [i for i in rows.impressions if i["split"] == "train"]
    for row in train:
        for item in row["candidates"]:
            expected[item] += 1
    for user in {i["user_id"] for i in train}:
        asked = [i for i in train if i["user_id"] == user]
        past = [
            e for e in rows.events if e["user_id"] == user and e["behaviour"] in ("click", "order")
        ]
        if timed:
            past = [e for e in past if e["ts"] < max(i["ts"] for i in asked)]
        else:
            past = past[: max(i["history_end"] for i in asked)]
        for event in past:
            if event["item_id"] in ITEMS:
                expected[event["item_id"]] += 1
            else:
                unknown += 1
    assert training_item_counts(data).tolist() == [0, unknown, *expected.values()]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_but_the_training_part_shapes_the_features(tmp_path: Path, seed: int) -> None:
    """Other valid and test requests, and other events from then on, give the same features."""
    rows = log(seed)
    last = {}
    for row in rows.impressions:
        if row["split"] == "train":
            last[row["user_id"]] = max(last.get(row["user_id"], 0), row["ts"])
    config = FeatureConfig(contexts=("meal", "degrees"), price_buckets=3)
    before = fit_features(opened(rows, tmp_path / "a"), config)
    for row in rows.impressions:
        if row["split"] != "train":
            row["candidates"], row["clicks"], row["orders"] = ["i9", "i8"], ["i9"], []
            row["position"], row["context"] = None, {"meal": "midnight", "degrees": 99.0}
    for event in rows.events:
        if event["ts"] >= last.get(event["user_id"], 0):
            event["item_id"], event["context"] = "i9", {"meal": "midnight", "degrees": 99.0}
    after = fit_features(opened(rows, tmp_path / "b"), config)
    assert after == before
    assert "midnight" not in after.contexts.features[0].values


def test_rare_values_have_no_code_of_their_own(tmp_path: Path) -> None:
    data = opened(log(1), tmp_path / "data")
    counts = dict(zip(ITEMS, training_item_counts(data)[2:].tolist(), strict=True))
    for least in (1, 3, 100):
        (field,) = fit_features(
            data, FeatureConfig(items=(VocabularyField(source="item_id", min_count=least),))
        ).items
        assert isinstance(field, VocabularyField)
        assert list(field.values) == sorted(i for i, n in counts.items() if n >= least)


def test_automatic_fields_are_those_that_tell_items_apart(tmp_path: Path) -> None:
    fitted = fit_features(opened(log(1), tmp_path / "data"), FeatureConfig())
    sources = [field.source for field in fitted.items]
    # Every item is "food" at the root and no item has an area: neither says anything.
    assert sources == ["item_id", "brand", "category:1", "attribute:size", "price"]
    assert fitted.contexts.names == ("meal", "degrees")
    again = FeatureSpace.model_validate_json(fitted.model_dump_json())
    assert again == fitted
    assert again.hash == fitted.hash


def test_faults_name_what_there_is(tmp_path: Path) -> None:
    data = opened(log(1), tmp_path / "data")
    with pytest.raises(ConfigError, match=r"unknown mood; the data set declares meal, degrees"):
        fit_features(data, FeatureConfig(contexts=("mood",)))
    with pytest.raises(ConfigError, match=r"no vectors are bound for title"):
        fit_features(data, FeatureConfig(vectors=("title",)))
    with pytest.raises(ConfigError, match=r"'colour' is unknown"):
        fit_features(data, FeatureConfig(items=(VocabularyField(source="colour"),)))
