"""Pairs, negatives and texts of LARR's second stage against a few lines of plain Python."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from larr_city import DAY, TEST_FROM, TRAIN_TO, City, open_city

from raysys.errors import DataError
from raysys.larr.batches import PairLoader
from raysys.larr.corpus import training_texts
from raysys.larr.log import Log
from raysys.larr.pairs import PairConfig, Pairs, PairSets, _rare
from raysys.larr.texts import SPECIAL_TOKENS, clean, plain


@pytest.fixture(scope="module")
def city() -> City:
    return City()


@pytest.fixture(scope="module")
def log(city: City, tmp_path_factory: pytest.TempPathFactory) -> Log:
    return open_city(city.write(tmp_path_factory.mktemp("city") / "d"))


def held(log: Log) -> set[str]:
    return {f"p{row - 2}" for row in np.flatnonzero(log.held)}


def test_neighbours_are_item_cf_within_one_week_of_training(log: Log, city: City) -> None:
    weeks: dict[tuple[str, int], set[str]] = {}
    for event in city.events:
        if event["ts"] < TRAIN_TO and event["item_id"] not in held(log):
            key = (event["user_id"], event["ts"] // (7 * DAY))
            weeks.setdefault(key, set()).add(event["item_id"])
    single = Counter(item for items in weeks.values() for item in items)
    both = Counter(
        pair
        for items in weeks.values()
        for a, b in combinations(items, 2)
        for pair in ((a, b), (b, a))
    )
    pairs = PairSets(log, PairConfig(neighbours=3), 0).train("pp")
    found: dict[str, list[str]] = {}
    for a, b in zip(pairs.anchor_id, pairs.positive_id, strict=True):
        found.setdefault(f"p{a - 2}", []).append(f"p{b - 2}")
    for item, near in found.items():
        score = {
            b: n / (single[a] * single[b]) ** 0.5
            for (a, b), n in both.items()
            if a == item and n >= 2
        }
        best = sorted(score.values(), reverse=True)[:3]
        assert sorted((score[other] for other in near), reverse=True) == pytest.approx(best)
    assert set(found) == {a for (a, _), n in both.items() if n >= 2}


def test_user_pairs_are_two_periods_that_do_not_touch(log: Log) -> None:
    pairs = PairSets(log, PairConfig(), 0).train("uu")
    ts = np.asarray(log.data.histories.ts)
    early, late = pairs.positive, pairs.anchor
    assert len(pairs) == 24
    for i in range(len(pairs)):
        assert ts[early.end[i] - 1] < ts[late.start[i]]
        assert ts[late.end[i] - 1] < TRAIN_TO
        text = early.text(log, i, training=True)
        assert text.startswith("<user><visits>") and "<likes>" not in text
        assert "<visits>" not in late.text(log, i, training=True)


def test_later_user_pairs_ask_with_the_days_of_a_part_for_those_before(log: Log) -> None:
    ts = np.asarray(log.data.histories.ts)
    for part, begin, end in (("valid", TRAIN_TO, TEST_FROM), ("test", TEST_FROM, np.inf)):
        pairs = PairSets(log, PairConfig(min_events=1), 0).later("uu", part)
        assert len(pairs)
        for i in range(len(pairs)):
            assert ts[pairs.anchor.start[i]] >= begin > ts[pairs.positive.end[i] - 1]
            assert ts[pairs.anchor.end[i] - 1] < end


def test_no_question_of_validation_is_one_of_the_test(log: Log, city: City) -> None:
    """What chooses epochs and options must not be what is reported."""
    split = {(i["user_id"], i["clicks"][0], i["split"]) for i in city.impressions}
    users = log.data.histories.users.to_pylist()
    ts = np.asarray(log.data.histories.ts)
    for part in ("valid", "test"):
        asked = PairSets(log, PairConfig(), 0).later("up", part)
        for i in range(len(asked)):
            pair = users[asked.anchor_id[i]], f"p{asked.positive_id[i] - 2}"
            assert (*pair, part) in split
        # Neighbours of the part's days; another part's clicks change nothing.
        events = log.events_of(part)
        assert events.any() and (ts[events] >= TRAIN_TO).all()
        assert ((ts[events] < TEST_FROM) == (part == "valid")).all()
    for rule in ("views", "brand"):
        sets = PairSets(log, PairConfig(pp=rule), 0)
        valid, test = (set(sets.later("pp", part).anchor_id.tolist()) for part in ("valid", "test"))
        assert not valid & test and (valid | test) <= set(np.flatnonzero(log.held).tolist())


def test_overlap_pairs_share_orders(log: Log, city: City) -> None:
    pairs = PairSets(log, PairConfig(uu="overlap", least=2), 0).train("uu")
    ordered: dict[str, set[str]] = {}
    for event in city.events:
        if event["ts"] < TRAIN_TO and event["behaviour"] == "order":
            ordered.setdefault(event["user_id"], set()).add(event["item_id"])
    users = log.data.histories.users.to_pylist()
    assert len(pairs)
    for a, b in zip(pairs.anchor_id, pairs.positive_id, strict=True):
        assert a != b and len((ordered[users[a]] & ordered[users[b]]) - held(log)) >= 2


def test_orders_alone_are_fewer_and_were_ordered(log: Log, city: City) -> None:
    clicks = PairSets(log, PairConfig(), 0).train("up")
    orders = PairSets(log, PairConfig(up="orders"), 0).train("up")
    wanted = sum(
        bool(i["orders"]) and i["split"] == "train" and i["orders"][0] not in held(log)
        for i in city.impressions
    )
    assert len(orders) == wanted < len(clicks)


def test_no_training_pair_or_hard_negative_is_a_held_out_place(log: Log) -> None:
    rng = np.random.default_rng(0)
    for rule in ("neighbours", "views", "brand"):
        sets = PairSets(log, PairConfig(pp=rule), 0)
        for pairs in (sets.train("pp"), sets.train("up")):
            assert len(pairs) and not log.held[pairs.positive_id].any()
            assert pairs.draw is not None
            drawn = pairs.draw(np.arange(len(pairs)), 3, rng)
            assert not log.held[drawn[drawn >= 0]].any()
            names = {log.places.label[row] for row in np.flatnonzero(log.held)}
            for i in range(len(pairs)):
                text = pairs.anchor.text(log, i, training=True)
                assert not names & {part.strip() for part in re.split("[<>;]", text)}


def test_hard_negatives_are_near_and_other_or_shown_and_passed_by(log: Log, city: City) -> None:
    sets, rng = PairSets(log, PairConfig(), 0), np.random.default_rng(1)
    places, near = log.places, sets.train("pp")
    drawn = near.draw(np.arange(len(near)), 4, rng)
    assert (drawn >= 0).any()
    for anchor, rows in zip(near.anchor_id, drawn, strict=True):
        for row in rows[rows >= 0]:
            assert places.area[row] == places.area[anchor]
            assert places.leaf[row] != places.leaf[anchor]
    shown = sets.train("up")
    requests = [
        i
        for i in sorted(city.impressions, key=lambda i: i["impression_id"])
        if i["split"] == "train"
    ]
    by_pair = {(i["user_id"], i["clicks"][0]): [] for i in requests}
    for i in requests:
        by_pair[i["user_id"], i["clicks"][0]] += i["candidates"]
    users = log.data.histories.users.to_pylist()
    for pair, rows in enumerate(shown.draw(np.arange(len(shown)), 4, rng)):
        key = users[shown.anchor_id[pair]], f"p{shown.positive_id[pair] - 2}"
        for row in rows[rows >= 0]:
            assert f"p{row - 2}" in by_pair[key] and f"p{row - 2}" != key[1]


def test_what_may_be_right_is_no_negative(log: Log, city: City) -> None:
    pairs = PairSets(log, PairConfig(), 0).train("up")
    users = log.data.histories.users.to_pylist()
    chosen: dict[str, set[str]] = {}
    for event in city.events:
        if event["ts"] < TRAIN_TO:
            chosen.setdefault(event["user_id"], set()).add(event["item_id"])
    brand = {item["item_id"]: item["brand"] for item in city.items}
    keys = np.concatenate([np.arange(2, 34), [-1]])
    negative = pairs.negatives(np.arange(len(pairs)), keys)
    for pair in range(len(pairs)):
        own = f"p{pairs.positive_id[pair] - 2}"
        for key, found in zip(keys, negative[pair], strict=True):
            name = f"p{key - 2}"
            same_brand = key > 0 and brand[name] is not None and brand[name] == brand[own]
            right = name == own or same_brand or name in chosen[users[pairs.anchor_id[pair]]]
            assert found == (key >= 0 and not right)


def test_new_places_are_those_that_training_never_saw(log: Log) -> None:
    sets = PairSets(log, PairConfig(), 0)
    later = sets.later("up", "test")
    assert (sets.unseen(later) == log.held[later.positive_id]).all()
    assert sets.unseen(later).any()


def test_a_place_that_only_later_days_know_is_trained_on_by_nothing(tmp_path: Path) -> None:
    city = City()
    fresh = "p7"
    for event in city.events:
        if event["ts"] < TRAIN_TO and event["item_id"] == fresh:
            event["item_id"] = "p3"
    for shown in city.impressions:
        if shown["split"] == "train":
            shown["candidates"] = [p for p in shown["candidates"] if p != fresh] or ["p3"]
            if shown["clicks"] == [fresh]:
                shown |= dict(candidates=["p3", *shown["candidates"]], clicks=["p3"], orders=[])
            shown["candidates"] = list(dict.fromkeys(shown["candidates"]))
    log = open_city(city.write(tmp_path / "d"), holdout=0.0)
    row, rng = 9, np.random.default_rng(0)
    assert log.places.label[row].endswith("house 7") and not log.usable[row]
    assert log.places.text(row) not in training_texts(log)
    for rule in ("neighbours", "views", "brand"):
        sets = PairSets(log, PairConfig(pp=rule), 0)
        for pairs in (sets.train("pp"), sets.train("up")):
            assert row not in pairs.positive_id
            assert row not in pairs.draw(np.arange(len(pairs)), 8, rng)
    later = PairSets(log, PairConfig(), 0).later("up", "test")
    assert (PairSets(log, PairConfig(), 0).unseen(later) == (later.positive_id == row)).all()


def test_overlap_knows_a_neighbour_from_both_sides(log: Log) -> None:
    pairs = PairSets(log, PairConfig(uu="overlap", neighbours=2), 0).train("uu")
    for pair in range(len(pairs)):
        back = np.flatnonzero(pairs.anchor_id == pairs.positive_id[pair])
        if len(back):
            assert not pairs.negatives(back[:1], pairs.anchor_id[[pair]]).any()


def test_places_that_everybody_orders_from_make_nobody_alike() -> None:
    chosen = sp.csr_matrix(np.array([[1, 1, 0], [1, 0, 1], [1, 0, 1]], np.float32))
    chosen = sp.vstack([chosen, sp.csr_matrix(np.eye(1, 3, dtype=np.float32).repeat(1000, 0))])
    kept = _rare(chosen.tocsr()).toarray()
    assert not kept[:, 0].any() and kept[:3, 1:].sum() == 3


def test_text_of_users_cannot_pose_as_special_tokens() -> None:
    nasty = "a<poi>b </user>\x00\x1b c<|im_end|>d\n\te<<name>name>"
    text = clean(nasty)
    assert not any(token in text for token in SPECIAL_TOKENS) and "<|" not in text
    assert text == "a b c d e< name>"
    assert plain("<poi><name> Red house<cat> thai</poi>") == "Red house. thai"


def some(pairs: Pairs, count: int) -> Pairs:
    return pairs.take(np.arange(count))


def test_a_kind_with_one_pair_is_refused(log: Log) -> None:
    pairs = some(PairSets(log, PairConfig(), 0).train("pp"), 1)
    sizes = dict(batch_size=8, hard=0, row_tokens=64, chunk_tokens=64, seed=0)
    with pytest.raises(DataError, match=r"1 training pairs of kind pp .*weights\.pp=0"):
        PairLoader(log, {"pp": pairs}, None, **sizes)  # type: ignore[arg-type]


def test_a_log_without_times_trains_on_what_training_requests_point_at(tmp_path: Path) -> None:
    city = City()
    for place, event in enumerate(city.events):
        city.events[place] = {**event, "ts": None}
    for shown in city.impressions:
        late = shown["user_id"] >= "u18"
        shown |= dict(ts=None, history_end=20, split="test" if late else "train")
    log = open_city(city.write(tmp_path / "d"))
    users = np.array(log.data.histories.users.to_pylist())[log.owner]
    within = np.arange(len(users)) - log.starts[log.owner] < 20
    assert (log.training == ((users < "u18") & within)).all()
    sets = PairSets(log, PairConfig(), 0)
    assert len(sets.later("uu", "valid")) == 0  # no time says which events are whose
    assert set(sets.later("uu", "test").anchor_id) == set(range(18, 24)) | set(range(18))
    assert (sets.train("up").anchor_id < 18).all()
