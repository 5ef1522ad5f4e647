"""Which contexts are alike, as fitted on a data set: by plain Python from its rows."""

import math
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from raysys.cofars.config import CofarsConfig, ContextConfig, PreferenceConfig
from raysys.cofars.fit import fit_contexts as fit_cofars
from raysys.ctr.retrievers.alike import AlikeContexts
from raysys.ctr.retrievers.config import (
    ETA,
    SDIM,
    CountedJS,
    Exact,
    Permuted,
    Random,
    RandomContexts,
)
from raysys.ctr.retrievers.fit import fit_retriever
from raysys.data.attributes import AttributeConfig, AttributeField
from raysys.data.dataset import Dataset, DatasetWriter
from raysys.data.features import fit_contexts
from raysys.data.manifest import DataCard
from raysys.data.prepared import Prepared, prepare
from raysys.errors import ConfigError

NAMES = ("day", "meal")
DAYS, MEALS = ("mon", "tue", "wed"), ("lunch", "dinner")
BRANDS = ("a", "b", "c")
ITEMS = [f"i{n}" for n in range(9)]
STRENGTH = 2.0
Row = dict[str, Any]


def row(user: str, seq: int, ts: int, rng: np.random.Generator) -> Row:
    """No dinner on Wednesdays; what is eaten depends on day and meal."""
    day, meal = int(rng.integers(3)), int(rng.integers(2))
    meal = 0 if day == 2 else meal
    liked = int(rng.choice(3, p=np.roll([0.8, 0.15, 0.05], day * meal)))
    return dict(
        user_id=user,
        seq=seq,
        ts=ts,
        item_id=ITEMS[3 * int(rng.integers(3)) + liked],
        behaviour="order" if rng.random() < 0.3 else "click",
        context=dict(day=DAYS[day], meal=MEALS[meal]),
    )


def shown(user: str, ts: int, split: str, number: int) -> Row:
    return dict(
        impression_id=f"{user}-{ts}",
        user_id=user,
        ts=ts,
        context=dict(day=DAYS[number % 3], meal=MEALS[number % 2]),
        candidates=ITEMS[:3],
        clicks=ITEMS[:1],
        orders=[],
        split=split,
    )


def make(folder: Path, later: int, past: int = 30) -> tuple[Prepared, list[Row]]:
    """A data set with `past` events before each user's training request, and those that count.

    Five events come between training and test request; one user has no training request.
    `later`: a seed of what comes after the first test request.
    """
    rng, after = np.random.default_rng(0), np.random.default_rng(later)
    events, impressions, counted = [], [], []
    for number in range(6):
        user = f"u{number}"
        own = [row(user, seq, 1 + seq, rng) for seq in range(past)]
        between = range(past, past + 5 if past else 0)
        own += [row(user, seq, 2 + seq, rng) for seq in between]
        later_on = range(len(own), len(own) + 10)
        events += own + [row(user, seq, 99 + past + seq, after) for seq in later_on]
        counted += own
        if number < 5:
            impressions.append(shown(user, past + 1, "train", number))
        impressions.append(shown(user, past + 99, "test", number))
    with DatasetWriter(folder, contexts=dict.fromkeys(NAMES, "categorical")) as writer:
        brands = [BRANDS[n % 3] for n in range(9)]
        items = dict(item_id=ITEMS, brand=brands, kind=["food"] * 9)
        writer.write("items", pa.table(items))
        declared = [
            dict(name="day", kind="categorical", values=list(DAYS)),
            dict(name="meal", kind="categorical", values=list(MEALS)),
        ]
        writer.write("contexts", pa.Table.from_pylist(declared))
        writer.write("events", pa.Table.from_pylist(events))
        writer.write("impressions", pa.Table.from_pylist(impressions))
        card = DataCard(
            dataset="tiny",
            version="1",
            reader="test@1",
            label_rule="click",
            split_rule="by time",
            group_key="impression",
            history_cut="strict",
            licence="none",
        )
        writer.commit(card, history_behaviours=("click", "order"))
    return prepare(Dataset(folder)), counted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, list[Row]]:
    folder = tmp_path_factory.mktemp("fit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(folder / "cache"))
        return make(folder / "data", later=1)


def counted_js(source: str = "brand", **more: Any) -> CountedJS:
    attributes = AttributeConfig(fields=(AttributeField(source=source),))
    return CountedJS(attributes=attributes, strength=STRENGTH, **more)


def fitted(config: Any, data: Prepared, seed: int = 0) -> Any:
    return fit_retriever(config, data, fit_contexts(data, "auto"), seed)


def shares_by_hand(counted: list[Row]) -> tuple[list[np.ndarray], int]:
    """The shares of every node: contexts met, days, everything, everything; how many were met."""
    brand = {item: BRANDS[n % 3] for n, item in enumerate(ITEMS)}

    def of(rows: list[Row], parent: np.ndarray | None) -> np.ndarray:
        tally = Counter(brand[r["item_id"]] for r in rows)
        counts = np.array([tally[b] for b in BRANDS], float)
        if parent is None:
            return counts / counts.sum()
        return (counts + STRENGTH * parent) / (counts.sum() + STRENGTH)

    root = of(counted, None)
    every = of(counted, root)
    days = {d: of([r for r in counted if r["context"]["day"] == d], every) for d in DAYS}
    met = []
    for day, meal in product(DAYS, MEALS):
        rows = [r for r in counted if r["context"] == dict(day=day, meal=meal)]
        if rows:
            met.append(of(rows, days[day]))
    return [*met, *days.values(), every, root], len(met)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    def towards(x: np.ndarray) -> float:
        mixture = (p + q) / 2
        return sum(a * math.log2(a / m) for a, m in zip(x, mixture, strict=True) if a > 0)

    return (towards(p) + towards(q)) / 2


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_contexts_are_alike_whose_counted_shares_are(
    made: tuple[Prepared, list[Row]], share: float
) -> None:
    data, counted = made
    got = fitted(counted_js(share=share), data).fitted
    shares, met = shares_by_hand(counted)
    assert met == len(got.table.known) == 5
    assert got.table.drop == ("meal", "day")
    pairs = sorted(divergence(shares[i], shares[j]) for i, j in combinations(range(met), 2))
    threshold = pairs[math.ceil(share * len(pairs)) - 1]
    for i, j in np.ndindex(len(shares), len(shares)):
        distance = divergence(shares[i], shares[j])
        assert got.matrix[i, j] == (distance <= threshold + 1e-6)
    assert got.matrix[:met, :met].all() == (share == 1.0)


@pytest.mark.parametrize("behaviours", [(), ("order",)])
def test_it_counts_what_cofars_counts(
    made: tuple[Prepared, list[Row]], behaviours: tuple[str, ...]
) -> None:
    data, counted = made
    config = counted_js(behaviours=behaviours)
    options = CofarsConfig(
        contexts=ContextConfig(features=NAMES, drop=NAMES[::-1]),
        preferences=PreferenceConfig(attributes=config.attributes, behaviours=behaviours),
    )
    known, log = fit_cofars(data, options, fit_contexts(data, "auto"))
    # Also of the user without a training request, and between training and test.
    kinds = behaviours or ("click", "order")
    assert log.counts.events.sum() == sum(r["behaviour"] in kinds for r in counted)
    shares = log.counts.node_shares(known.table, STRENGTH)
    wanted = AlikeContexts.nearest(known.table, shares, log.counts.widths, config.share)
    assert fitted(config, data).fitted == wanted


def test_behaviours_change_the_counts(made: tuple[Prepared, list[Row]]) -> None:
    data, _ = made
    every, orders = counted_js(share=0.4), counted_js(share=0.4, behaviours=("order",))
    assert fitted(every, data).fitted.rows != fitted(orders, data).fitted.rows
    with pytest.raises(ValidationError, match=r"unknown behaviours \['wave'\]"):
        counted_js(behaviours=("wave",))


@pytest.mark.parametrize("kind", [Random, Permuted, ETA, SDIM])
def test_draws_follow_the_seed_of_training(made: tuple[Prepared, list[Row]], kind: Any) -> None:
    data, _ = made
    assert fitted(kind(), data, seed=4) == kind(seed=4)
    assert fitted(kind(seed=2), data, seed=4) == kind(seed=2)
    assert kind().draw == 0


def test_placebos_of_other_seeds_are_others(made: tuple[Prepared, list[Row]]) -> None:
    data, _ = made
    options = counted_js(share=0.4).model_dump(exclude={"kind", "fitted"})
    drawn = [fitted(RandomContexts(**options), data, seed) for seed in range(4)]
    assert drawn[3] == fitted(RandomContexts(**options, seed=3), data, seed=1)
    assert [one.seed for one in drawn] == [0, 1, 2, 3]
    assert len({one.fitted.rows for one in drawn}) > 1


def test_an_unseen_context_is_like_its_parent(made: tuple[Prepared, list[Row]]) -> None:
    data, _ = made
    table = fitted(counted_js(), data).fitted.table
    # Codes: 0 missing, 1 unknown, 2.. in the order of the values.
    keys = table.keys(np.array([(2, 2), (4, 2), (4, 3), (1, 3), (0, 0)]))
    # Five contexts were met, then come three days; then all, without meal and day.
    assert table.nodes(keys).tolist() == [0, 4, 7, 8, 8]


def test_what_comes_after_training_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: tuple[Prepared, list[Row]]
) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    other, _ = make(tmp_path / "data", later=2)
    assert not np.array_equal(other.histories.item, made[0].histories.item)
    assert fitted(counted_js(), other) == fitted(counted_js(), made[0])


def test_the_placebo_has_as_many_contexts_for_each(made: tuple[Prepared, list[Row]]) -> None:
    data, _ = made
    real = fitted(counted_js(share=0.4), data)
    options = real.model_dump(exclude={"kind", "fitted"})
    drawn = [fitted(RandomContexts(**options, seed=seed), data) for seed in range(4)]
    for other in drawn:
        assert other.fitted.table == real.fitted.table
        assert (other.fitted.matrix.sum(1) == real.fitted.matrix.sum(1)).all()
        assert other.fitted.matrix.diagonal().all()
    assert len({other.fitted.rows for other in drawn} | {real.fitted.rows}) > 2


def test_what_is_fitted_stays_and_what_needs_nothing_too(
    made: tuple[Prepared, list[Row]],
) -> None:
    data, _ = made
    once = fitted(counted_js(), data)
    assert fitted(once, data) is once
    assert type(once).model_validate_json(once.model_dump_json()) == once
    for config in (None, Exact()):
        assert fitted(config, data) is config


def test_what_cannot_tell_contexts_apart_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: tuple[Prepared, list[Row]]
) -> None:
    data, _ = made
    with pytest.raises(ConfigError, match="kind has fewer than two values"):
        fitted(counted_js("kind"), data)
    with pytest.raises(ConfigError, match="'taste' is unknown"):
        fitted(counted_js("taste"), data)
    with pytest.raises(ConfigError, match="unknown context features weather; known: day, meal"):
        fitted(counted_js(contexts=("weather",)), data)
    with pytest.raises(ConfigError, match="hold 1 combinations of no features"):
        fitted(counted_js(contexts=()), data)
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    nothing, _ = make(tmp_path / "data", later=1, past=0)
    with pytest.raises(ConfigError, match="hold 0 combinations of day, meal; name other contexts"):
        fitted(counted_js(), nothing)
