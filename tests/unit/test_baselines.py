"""Each baseline against a few lines of plain Python on a small random log."""

from math import log, sqrt
from pathlib import Path

import numpy as np
import pytest
from baselines_fixtures import HOUR, Log, random_log, write

from raysys.errors import ConfigError, DataError
from raysys.metrics.baselines import NAMES, NEEDS, compute_baselines

SIMPLE = [name for name in NAMES if not name.startswith("gbdt")]


@pytest.fixture(scope="module", params=[(0, True), (1, True), (2, False)], ids=str)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    seed, timed = request.param
    log_ = random_log(seed, timed=timed)
    data = write(log_, tmp_path_factory.mktemp("log"))
    vectors = np.random.default_rng(seed).normal(size=(20, 4)).astype(np.float32)
    vectors[:2] = 0
    return log_, data, vectors, compute_baselines(data, "test", seed=5, vectors=vectors)


def _equal(scores: np.ndarray, expected: list[float]) -> None:
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_popularity_counts_clicks_and_views_of_the_training_split(case: tuple) -> None:
    log_, _, _, scores = case
    train = [i for i in log_.impressions if i["split"] == "train"]
    clicks = [sum(item in i["clicks"] for i in train) for _, item in log_.rows("test")]
    views = [sum(item in i["candidates"] for i in train) for _, item in log_.rows("test")]
    _equal(scores["popularity"], clicks)
    _equal(scores["ctr"], [(c + 1) / (v + 20) for c, v in zip(clicks, views, strict=True)])


def test_repeat_counts_the_item_in_the_history(case: tuple) -> None:
    log_, _, _, scores = case
    _equal(scores["repeat"], [log_.history(i).count(item) for i, item in log_.rows("test")])


def _paths(log_: Log, item: str | None) -> list[tuple[str, ...]]:
    path = (log_.item(item)["category"] or []) if item else []
    return [tuple(path[: level + 1]) for level in range(len(path))]


def test_category_affinity_and_category_in_history(case: tuple) -> None:
    log_, _, _, scores = case
    kinds = [
        len({p for i in log_.items for p in _paths(log_, i["item_id"]) if len(p) == level + 1})
        for level in range(3)
    ]
    affinity, seen = [], []
    for impression, item in log_.rows("test"):
        past = [p for e in log_.history(impression) for p in _paths(log_, e)]
        counts = [past.count(p) for p in _paths(log_, item)]
        counts += [0] * (3 - len(counts))
        size = len(log_.history(impression)) + 1
        affinity.append(np.mean([(c + 1 / k) / size for c, k in zip(counts, kinds, strict=True)]))
        seen.append(np.mean([c > 0 for c in counts]))
    _equal(scores["category_affinity"], affinity)
    _equal(scores["category_in_history"], seen)


def test_entity_overlap_sums_events_per_entity(case: tuple) -> None:
    log_, _, _, scores = case

    def entities(item: str | None) -> list[str]:
        return [e["id"] for e in log_.item(item)["entities"]] if item else []

    expected = []
    for impression, item in log_.rows("test"):
        past = [e for event in log_.history(impression) for e in entities(event)]
        expected.append(sum(past.count(e) for e in entities(item)))
    _equal(scores["entity_overlap"], expected)


def test_recency_is_age_since_creation_or_first_sight_before_the_split(case: tuple) -> None:
    log_, _, _, scores = case
    test = [i for i in log_.impressions if i["split"] == "test"]
    if test[0]["ts"] is None:
        assert "recency" not in scores
        return
    cut = min(i["ts"] for i in test)
    sights = [(item, i["ts"]) for i in log_.impressions for item in i["candidates"]]
    sights += [(e["item_id"], e["ts"]) for e in log_.events]
    expected = []
    for impression, item in log_.rows("test"):
        first = min((ts for i, ts in sights if i == item and ts < cut), default=impression["ts"])
        born = log_.item(item)["created_at"] or first
        expected.append(-max(impression["ts"] - born, 0) / (24 * HOUR))
    _equal(scores["recency"], expected)


def _tfidf(log_: Log) -> dict[str, dict[str, float]]:
    texts = {i["item_id"]: (i["title"] or "").split() for i in log_.items}
    train = [i for i in log_.impressions if i["split"] == "train"]
    seen = {c for i in train for c in i["candidates"]} | {e for i in train for e in log_.history(i)}
    known = [texts[i] for i in sorted(seen - {None})]
    vocabulary = {w for words in known for w in words}
    vectors = {}
    for item, words in texts.items():
        raw = {
            w: (1 + log(words.count(w)))
            * (1 + log((1 + len(known)) / (1 + sum(w in k for k in known))))
            for w in set(words) & vocabulary
        }
        length = sqrt(sum(v * v for v in raw.values())) or 1.0
        vectors[item] = {w: v / length for w, v in raw.items()}
    return vectors


def test_tfidf_cosines_with_frequencies_of_training_items(case: tuple) -> None:
    log_, _, _, scores = case
    vectors = _tfidf(log_)

    def cosine(a: str, b: str) -> float:
        return sum(v * vectors[b].get(w, 0.0) for w, v in vectors[a].items())

    found = [
        [cosine(item, e) for e in log_.history(i) if e] or [0.0] for i, item in log_.rows("test")
    ]
    _equal(scores["tfidf"], [float(np.mean(c)) for c in found])
    _equal(scores["tfidf_max"], [max(c) for c in found])


def test_embedding_cosines(case: tuple) -> None:
    log_, _, vectors, scores = case
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    row = {item["item_id"]: 2 + n for n, item in enumerate(log_.items)}
    found = [
        [float(unit[row[item]] @ unit[row[e]]) for e in log_.history(i) if e] or [0.0]
        for i, item in log_.rows("test")
    ]
    _equal(scores["embedding"], [float(np.mean(c)) for c in found])
    _equal(scores["embedding_max"], [max(c) for c in found])


def test_only_the_newest_fifty_events_count_for_cosines(tmp_path: Path) -> None:
    log_ = random_log(3, timed=False, users=2, impressions=12)
    old, new = log_.items[1]["item_id"], log_.items[2]["item_id"]
    log_.events = [
        dict(user_id="u01", seq=n, ts=None, item_id=old if n < 40 else new, behaviour="click")
        for n in range(90)
    ]
    for impression in log_.impressions:
        impression |= dict(user_id="u01", history_end=90)
    vectors = np.eye(20, dtype=np.float32)
    scores = compute_baselines(
        write(log_, tmp_path), "test", seed=0, vectors=vectors, which=["embedding", "repeat"]
    )
    items = [item for _, item in log_.rows("test")]
    _equal(scores["embedding"], [float(item == new) for item in items])
    _equal(scores["repeat"], [{old: 40, new: 50}.get(item, 0) for item in items])


def test_random_is_seeded(case: tuple) -> None:
    _, data, _, scores = case
    same = compute_baselines(data, "test", seed=5, which=["random"])["random"]
    other = compute_baselines(data, "test", seed=6, which=["random"])["random"]
    assert np.array_equal(same, scores["random"])
    assert not np.array_equal(same, other)


def test_every_score_is_finite_and_every_absence_has_a_reason(case: tuple) -> None:
    log_, _, _, scores = case
    for name, values in scores.items():
        assert values.shape == (len(log_.rows("test")),), name
        assert np.isfinite(values).all(), name
    assert {"gbdt_pointwise", "gbdt_lambdarank"} <= scores.keys()
    assert set(NAMES) - scores.keys() <= {*NEEDS, "gbdt_histogram"}


def test_a_bare_log_leaves_out_what_it_cannot_tell(tmp_path: Path) -> None:
    log_ = random_log(4, timed=False)
    log_.items = [dict(item_id=item["item_id"]) for item in log_.items]
    scores = compute_baselines(write(log_, tmp_path), "test", seed=0)
    assert set(SIMPLE) & scores.keys() == {"random", "popularity", "ctr", "repeat"}
    assert "gbdt_pointwise" in scores


def test_streaming_counts_follow_the_impressions(tmp_path: Path) -> None:
    log_ = random_log(0)
    scores = compute_baselines(write(log_, tmp_path), "test", seed=0, counts="streaming")
    expected = [
        sum(item in i["clicks"] and i["ts"] < now["ts"] for i in log_.impressions)
        for now, item in log_.rows("test")
    ]
    _equal(scores["popularity"], expected)


def test_streaming_counts_need_times(tmp_path: Path) -> None:
    data = write(random_log(2, timed=False), tmp_path)
    with pytest.raises(DataError, match="use frozen counts"):
        compute_baselines(data, "test", seed=0, counts="streaming")


def test_an_unknown_name_gets_the_nearest(case: tuple) -> None:
    with pytest.raises(ConfigError, match="did you mean 'popularity'"):
        compute_baselines(case[1], "test", seed=0, which=["popularty"])
