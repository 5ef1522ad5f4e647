"""The required properties of the planted world, each by its number, on small worlds."""

import filecmp
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from raysys.data.check import check
from raysys.data.dataset import Dataset
from raysys.data.mapping import LocalMapper
from raysys.data.world import Effects, WorldConfig, make_world
from raysys.data.world.food import QUERIES, FoodCity
from raysys.data.world.lexicon import NEW_WEATHERS
from raysys.data.world.news import Newspaper
from raysys.data.world.reading import (
    Rows,
    codes_of,
    history_ends,
    read_history,
    read_rows,
)
from raysys.data.world.scene import DAY_US, context_parts
from raysys.data.world.show import draw_map, show
from raysys.data.world.simulate import build_world
from raysys.data.world.truth import read_truth
from raysys.errors import DataError

FOOD = WorldConfig(users=300, days=40, seed=11, truth_terms=True)
NEWS = WorldConfig(kind="news", users=200, days=40, seed=11, truth_terms=True)
TINY = {"users": 60, "days": 14, "seed": 3, "truth_terms": True}


def make(config: WorldConfig, folder: Path) -> Path:
    """A world in `folder`."""
    make_world(config, folder, LocalMapper())
    return folder


@pytest.fixture(scope="module")
def food(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(FOOD, tmp_path_factory.mktemp("food") / "w")


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(NEWS, tmp_path_factory.mktemp("news") / "w")


@pytest.fixture(scope="module")
def figures(food: Path) -> dict[str, Any]:
    return show(food)


def rows_of(path: Path) -> Rows:
    """All candidate rows of a small world."""
    return read_rows(Dataset(path), read_truth(path), parts=99)


def terms_of(path: Path) -> dict[str, np.ndarray]:
    """The terms of the law per candidate row, in the order of `rows_of`."""
    table = read_truth(path).rows()
    names = [name for name in table.column_names if name.startswith("term_")]
    return {name.removeprefix("term_"): table[name].to_numpy() for name in names}


def five_errors(label: np.ndarray) -> float:
    """Five standard errors of an AUC of 0.5."""
    positives = int(label.sum())
    return 5 * float(np.sqrt(len(label) / (12 * positives * (len(label) - positives))))


class Backwards:
    """Does the tasks from the last to the first, as some other worker might."""

    def __call__(
        self, fn: Callable[[Any], Any], tasks: Sequence[Any], *, label: str
    ) -> Iterator[Any]:
        return reversed([fn(task) for task in reversed(tasks)])


@pytest.mark.parametrize("kind", ["food", "news"])
def test_property_01_same_seed_same_bytes(tmp_path: Path, kind: str) -> None:
    config = WorldConfig(kind=kind, shard_users=16, **TINY)
    first = make(config, tmp_path / "a")
    make_world(config, tmp_path / "b", Backwards())
    names = [p.relative_to(first).as_posix() for p in first.rglob("*") if p.is_file()]
    same, different, missing = filecmp.cmpfiles(first, tmp_path / "b", names, shallow=False)
    assert (different, missing) == ([], [])
    assert len(same) == len(names)
    assert sum(p.is_file() for p in (tmp_path / "b").rglob("*")) == len(names)


def test_property_02_rates(figures: dict[str, Any], news: Path) -> None:
    assert 0.06 <= figures["click_rate"] <= 0.15
    assert 0.08 <= figures["order_rate"] <= 0.25
    assert 0.06 <= show(news)["click_rate"] <= 0.15


def test_property_03_oracle_popularity_and_random(food: Path, figures: dict[str, Any]) -> None:
    assert 0.74 <= figures["oracle_auc"] <= 0.86
    assert 0.55 <= figures["popularity_auc"] <= 0.66
    click = rows_of(food).click
    random = np.random.default_rng(0).random(len(click))
    assert roc_auc_score(click, random) == pytest.approx(0.5, abs=five_errors(click))


def test_property_04_exact_contexts_are_rare(figures: dict[str, Any]) -> None:
    assert 0.01 <= figures["exact_context_share"] <= 0.10


def test_property_05_counted_js_finds_the_prototypes(figures: dict[str, Any]) -> None:
    assert figures["prototypes"]["contexts_judged"] >= 60
    assert figures["prototypes"]["js_auc"] >= 0.95
    assert figures["prototypes"]["js_nmi"] >= 0.8


def test_property_06_new_places_are_dark_to_an_id_model(food: Path) -> None:
    rows, city = rows_of(food), build_world(FOOD)
    assert isinstance(city.law, FoodCity)
    new = city.law.catalogue.opened >= city.scene.test_from
    assert 0.05 < new.mean() < 0.15
    train = (rows.split == 0)[rows.request]
    assert not new[rows.item[train]].any()
    test = (rows.split == 2)[rows.request] & new[rows.item]
    seen = np.bincount(rows.item[train], minlength=len(new))
    clicked = np.bincount(rows.item[train], rows.click[train], minlength=len(new))
    by_id = ((clicked + 1) / (seen + 20))[rows.item]
    assert roc_auc_score(rows.click[test], by_id[test]) == 0.5
    assert roc_auc_score(rows.click[test], rows.oracle[test]) > 0.7


def recomputed_joint(path: Path, config: WorldConfig) -> tuple[np.ndarray, np.ndarray]:
    """(J, clicks up to local midnight) per candidate row, from the logged past alone."""
    dataset, city = Dataset(path), build_world(config).law
    assert isinstance(city, FoodCity)
    family_of = dict(zip(city.item_ids.to_pylist(), city.catalogue.family.tolist(), strict=True))
    query_of = {text: number for number, texts in enumerate(QUERIES) for text in texts}
    events: dict[str, list[dict[str, Any]]] = {}
    for event in dataset.table("events").to_pylist():
        events.setdefault(event["user_id"], []).append(event)
    midnight = build_world(config).scene.midnight[0]
    joint, repeats = [], []
    for request in dataset.table("impressions").to_pylist():
        past = [e for e in events.get(request["user_id"], []) if e["ts"] < request["ts"]]
        search = [query_of[e["text"]] for e in past if e["behaviour"] == "search"]
        liked = [family_of[e["item_id"]] for e in past if e["behaviour"] == "favourite"]
        target = city.square[search[-1], liked[-1]] if search and liked else -1
        today = midnight + (request["ts"] - midnight) // DAY_US * DAY_US
        clicks = [e["item_id"] for e in past if e["behaviour"] == "click" and e["ts"] < today]
        joint += [family_of[item] == target for item in request["candidates"]]
        repeats += [clicks.count(item) for item in request["candidates"]]
    return np.array(joint), np.array(repeats)


@pytest.mark.slow
def test_property_07_nothing_after_an_impression_tells_about_it(food: Path, news: Path) -> None:
    """The law at a request can be computed again from what was logged before it."""
    joint, repeats = recomputed_joint(food, FOOD)
    truth = read_truth(food).rows()
    assert (joint == truth["joint"].to_numpy(zero_copy_only=False)).all()
    assert joint.mean() > 0.05
    assert np.allclose(1 - 0.5 ** np.minimum(repeats, 60), terms_of(food)["repeat"])
    for path in (food, news):
        rows = rows_of(path)
        created = Dataset(path).table("items", ["created_at"])["created_at"].to_numpy()
        assert (created[rows.item] <= rows.ts[rows.request]).all()


def test_property_08_candidate_order_is_blind(food: Path, news: Path) -> None:
    for path in (food, news):
        rows, truth = rows_of(path), read_truth(path).rows()
        position = np.concatenate(Dataset(path).table("impressions")["position"].to_pylist())
        oracle = truth["oracle"].to_numpy().astype(np.float64)
        mean = (np.bincount(rows.request, oracle) / np.bincount(rows.request))[rows.request]
        inside = np.corrcoef(position, oracle - mean)[0, 1]
        assert abs(inside) < 4 / np.sqrt(len(oracle))


def test_property_09_the_oracle_can_be_learnt(food: Path, news: Path) -> None:
    for path in (food, news):
        rows, terms = rows_of(path), terms_of(path)
        x = np.column_stack([*terms.values()])
        train, test = ((rows.split == part)[rows.request] for part in (0, 2))
        mean, spread = x[train].mean(0), x[train].std(0) + 1e-9
        model = LogisticRegression(C=10.0).fit((x[train] - mean) / spread, rows.click[train])
        learnt = model.decision_function((x[test] - mean) / spread)
        gap = roc_auc_score(rows.click[test], rows.oracle[test]) - roc_auc_score(
            rows.click[test], learnt
        )
        assert gap < 0.01


def test_oracle_is_calibrated(food: Path, news: Path) -> None:
    for path in (food, news):
        rows, truth = rows_of(path), read_truth(path).rows()
        expected = float(truth["p_click"].to_numpy().sum())
        assert rows.click.sum() == pytest.approx(expected, abs=5 * np.sqrt(expected))
        orders = float(truth["p_order"].to_numpy()[rows.click].sum())
        assert rows.order.sum() == pytest.approx(orders, abs=5 * np.sqrt(orders) + 1e-9)


def test_unseen_scenes(food: Path) -> None:
    """Unseen combinations are new with known values; new words appear in the test part only."""
    rows, dataset = rows_of(food), Dataset(food)
    scene = build_world(FOOD).scene
    start = scene.midnight[scene.test_from]
    events = dataset.table("events", ["ts", "context"])
    past = events.filter(pc.less(events["ts"], int(start)))["context"].combine_chunks()
    seen = {tuple(context.values()) for context in past.to_pylist()}
    before = rows.ts < start
    impressions = dataset.table("impressions")["context"].combine_chunks().to_pylist()
    seen |= {tuple(impressions[r].values()) for r in np.flatnonzero(before)}
    values = [{combination[i] for combination in seen} for i in range(4)]
    for r, context in enumerate(impressions):
        combination = tuple(context.values())
        if rows.unseen[r]:
            assert combination not in seen
        if not rows.new_value[r]:
            assert all(value in known for value, known in zip(combination, values, strict=True))
        else:
            assert context["weather"] not in values[2]
    assert not (rows.unseen | rows.new_value)[before].any()
    share = rows.unseen[rows.split == 2].mean()
    assert share == pytest.approx(0.15, abs=0.05)


@pytest.mark.parametrize("world", ["food", "news"])
def test_folder_is_valid_and_split_by_time(world: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(world)
    report = check(path)
    assert not report.faults, report.faults[:3]
    rows = rows_of(path)
    parts = [rows.ts[rows.split == split] for split in range(3)]
    assert all(len(part) for part in parts)
    assert parts[0].max() < parts[1].min() <= parts[1].max() < parts[2].min()
    cold = read_truth(path).users()["cold"].to_numpy(zero_copy_only=False)
    assert 0.03 < cold.mean() < 0.2
    assert rows.ts[cold[rows.user]].min() >= parts[2].min() - DAY_US


def test_both_kinds_know_the_same_users(food: Path, news: Path) -> None:
    here, there = (Dataset(path).table("users") for path in (food, news))
    assert here["user_id"].slice(0, len(there)).equals(there["user_id"])


@pytest.mark.slow
def test_words_switch(food: Path, tmp_path: Path) -> None:
    off = make(FOOD.model_copy(update={"effects": Effects(words=False)}), tmp_path / "w")
    city = build_world(FOOD).law
    assert isinstance(city, FoodCity)
    for path, law in ((food, True), (off, False)):
        rows = rows_of(path)
        meal, _, weather, _ = context_parts(rows.context[rows.request])
        fit = city.catalogue.words[meal * 4 + weather, rows.item]
        auc = roc_auc_score(rows.click, fit)
        assert (auc > 0.5 + five_errors(rows.click)) == law
        assert terms_of(path)["words"].any() == law


def test_new_words_tell_the_weather_only_where_words_have_a_law(tmp_path: Path) -> None:
    """Otherwise text alone would win on values that no model has seen, in the placebo too."""
    for law in (True, False):
        config = WorldConfig(
            users=150, days=20, seed=5, new_value_share=0.8, effects={"words": law}
        )
        path = make(config, tmp_path / str(law))
        dataset, scene = Dataset(path), build_world(config).scene
        rows = rows_of(path)
        areas = [dict(pairs) for pairs in dataset.table("users")["attributes"].to_pylist()]
        contexts = dataset.table("impressions")["context"].to_pylist()
        agree = []
        for row in np.flatnonzero(rows.new_value):
            area = int(areas[rows.user[row]][contexts[row]["place"]].removeprefix("area-"))
            day = int(np.searchsorted(scene.midnight, rows.ts[row], side="right")) - 1
            weather = scene.weather[day, scene.district[area]]
            agree.append(NEW_WEATHERS.index(contexts[row]["weather"]) == weather)
        assert len(agree) > 100
        error = (0.1875 / len(agree)) ** 0.5
        assert np.mean(agree) == (1 if law else pytest.approx(0.25, abs=4 * error))


@pytest.mark.slow
def test_joint_behaviour_switch(tmp_path: Path) -> None:
    for law in (True, False):
        config = WorldConfig(**{**TINY, "users": 150}, effects={"joint_behaviour": law})
        path = make(config, tmp_path / str(law))
        joint, _ = recomputed_joint(path, config)
        rows = rows_of(path)
        lift = rows.click[joint].mean() / rows.click[~joint].mean()
        assert lift > 1.3 if law else lift < 1.2
        assert terms_of(path)["joint"].any() == law


@pytest.mark.slow
def test_taste_switch(tmp_path: Path) -> None:
    path = make(WorldConfig(**TINY, effects={"taste": False}), tmp_path / "w")
    assert not terms_of(path)["taste"].any()
    path = make(WorldConfig(kind="news", **TINY, effects={"taste": False}), tmp_path / "n")
    assert not terms_of(path)["topic"].any()


@pytest.mark.slow
def test_context_switch(tmp_path: Path, figures: dict[str, Any]) -> None:
    """Without the context law each user has one prototype, and contexts tell no prototype."""
    config = WorldConfig(users=200, days=40, seed=11, truth_terms=True, effects={"context": False})
    path = make(config, tmp_path / "w")
    rows = rows_of(path)
    own = read_truth(path).users()["own_prototype"].to_numpy()
    assert (rows.prototype == own[rows.user]).all()
    assert len(np.unique(own)) > 6
    assert abs(show(path)["prototypes"]["js_auc"] - 0.5) < 0.1
    assert terms_of(path)["prototype"].std() > 0.8  # variance stays


@pytest.mark.slow
def test_entity_switch(news: Path, tmp_path: Path) -> None:
    assert terms_of(news)["entity"].any()
    off = make(WorldConfig(kind="news", **TINY, effects={"entity": False}), tmp_path / "w")
    assert not terms_of(off)["entity"].any()
    assert terms_of(off)["topic"].std() > 0.8  # everybody is topic-driven


def test_abstract_switch(news: Path, tmp_path: Path) -> None:
    rows = rows_of(news)
    auc = roc_auc_score(rows.click, terms_of(news)["abstract"])
    assert auc > 0.5 + five_errors(rows.click)
    off = make(WorldConfig(kind="news", **TINY, effects={"abstract": False}), tmp_path / "w")
    assert not terms_of(off)["abstract"].any()


def test_readers_are_of_three_kinds(news: Path) -> None:
    readers = np.array(read_truth(news).users()["reader"].to_pylist())
    rows, terms = rows_of(news), terms_of(news)
    kind = readers[rows.user[rows.request]]
    assert set(readers) == {"topic", "mixed", "entity"}
    assert not terms["entity"][kind == "topic"].any()
    assert not terms["topic"][kind == "entity"].any()
    rates = [rows.click[kind == name].mean() for name in ("topic", "mixed", "entity")]
    assert max(rates) / min(rates) < 1.6


def test_reading_history_tells_topics_and_entities(news: Path) -> None:
    """Counted topics rank for topic-driven readers, counted entities for entity-driven ones."""
    rows, history, paper = rows_of(news), read_history(Dataset(news), 99), build_world(NEWS).law
    assert isinstance(paper, Newspaper)
    start, end = history_ends(history, rows.user, rows.ts)
    fields = {"topic": paper.articles.topic[:, None], "entity": paper.articles.entities}
    readers = np.array(read_truth(news).users()["reader"].to_pylist())[rows.user[rows.request]]
    lift = {name: np.zeros(len(rows.item)) for name in fields}
    for name, values in fields.items():
        base = np.maximum(np.bincount(values.ravel()), 1) / len(values)
        for request in range(len(start)):
            past = values[history.item[start[request] : end[request]]]
            counts = np.bincount(past.ravel(), minlength=len(base)) + 8 * base
            mine = slice(*np.searchsorted(rows.request, [request, request + 1]))
            lift[name][mine] = np.log(counts / (len(past) + 8) / base)[values[rows.item[mine]]].sum(
                axis=1
            )
    for kind, other in (("topic", "entity"), ("entity", "topic")):
        mask = readers == kind
        auc = {name: roc_auc_score(rows.click[mask], lift[name][mask]) for name in fields}
        assert auc[kind] > 0.6
        assert auc[kind] > auc[other] + 0.05


@pytest.mark.parametrize("world", ["food", "news"])
def test_truth_lies_beside_the_impressions(world: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(world)
    rows, impressions = read_truth(path).rows(), Dataset(path).table("impressions")
    flat = pc.list_flatten(impressions["candidates"])
    assert rows["item_id"].to_pylist() == flat.to_pylist()
    owner = pc.list_parent_indices(impressions["candidates"].combine_chunks())
    ids = impressions["impression_id"].combine_chunks().take(owner)
    assert rows["impression_id"].to_pylist() == ids.to_pylist()
    requests = read_truth(path).requests()
    assert requests["impression_id"].to_pylist() == impressions["impression_id"].to_pylist()


def test_only_worlds_have_a_truth(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set folder"):
        read_truth(tmp_path)


def test_history_lengths(figures: dict[str, Any]) -> None:
    lengths = figures["history_quantiles"]
    assert lengths["0"] == 0
    assert lengths["99"] > 5 * lengths["50"]


def test_map_is_drawn(food: Path, tmp_path: Path) -> None:
    draw_map(food, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_left_of_a_broken_world(tmp_path: Path) -> None:
    class Broken:
        def __call__(self, fn: Any, tasks: Any, *, label: str) -> Iterator[Any]:
            for number, task in enumerate(tasks):
                if number == 1:
                    raise DataError("a worker was lost")
                yield fn(task)

    with pytest.raises(DataError, match="worker was lost"):
        make_world(WorldConfig(shard_users=20, **TINY), tmp_path / "w", Broken())
    assert list(tmp_path.iterdir()) == []


def test_codes_of_unknown_is_minus_one() -> None:
    import pyarrow as pa

    assert codes_of(pa.array(["b", None, "z"]), "ab").tolist() == [1, -1, -1]
