"""The fair-test engine: what an arm is, what is resumed, and which words come out."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.cofars_arms import arms, claims
from bench.fair import study as study_module
from bench.fair.arms import Arm
from bench.fair.folds import Fold, run_folds
from bench.fair.judge import Claim, Parts, judge, values
from bench.fair.leaks import leak_tests, write_labels
from bench.fair.report import write_page
from bench.fair.results import cheap, constant, sliced
from bench.fair.slices import slices
from bench.fair.study import Sizes, Study, merged, run_study
from raysys.artifacts.run import read_config
from raysys.data.dataset import Dataset
from raysys.data.mapping import LocalMapper
from raysys.data.prepared import Prepared, prepare
from raysys.data.training_counts import training_stop
from raysys.data.world import WorldConfig, make_world
from raysys.errors import ConfigError
from raysys.metrics import ScoredRows
from raysys.metrics.compare import System
from raysys.options import load_yaml
from raysys.recipes.split_scorer import chosen_impressions

BASE: dict[str, Any] = {
    "model": {"embedding_dim": 4, "attention_hidden": [8], "hidden": [8], "history_length": 5},
    "batch_size": 16,
    "train": {"epochs": 1},
}
ARMS = [
    Arm(
        name="short",
        recipe="ctr/din",
        tries=({"train.lr": 1e-3}, {"train.lr": 1e-2}),
        named=True,
    ),
    Arm(name="pooled", recipe="ctr/dcnv2", tries=({"train.lr": 1e-3}, {"train.lr": 1e-2})),
    Arm(name="twin", recipe="ctr/din", options={"model.match": False}, tuned_as="short"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fair") / "world"
    make_world(WorldConfig(users=60, days=20, seed=3), out, LocalMapper())
    return out


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Trains in this process; how many trainings each call asked for."""
    asked: list[int] = []

    def run_tasks(
        fn: Callable[[Any], Any], tasks: Sequence[Any], *, label: str, num_cpus: float
    ) -> Iterator[Any]:
        asked.append(len(tasks))
        return map(fn, tasks)

    monkeypatch.setattr(study_module, "run_tasks", run_tasks)
    monkeypatch.setattr(study_module, "ensure_ray", lambda env: True)
    return asked


@pytest.mark.slow
def test_a_study_tunes_alike_seeds_and_resumes(
    world: Path, here: list[int], tmp_path: Path
) -> None:
    sizes = Sizes(rows=3000, users=20, seeds=3, other_seeds=1)
    first = run_study(ARMS, BASE, str(world), tmp_path / "out", sizes)
    # Two arms with two tries each; three seeds of the named arm, one of each other.
    assert here == [4, 5]
    assert {name: sorted(s.rows) for name, s in first.systems.items()} == {
        "short": [0, 1, 2],
        "pooled": [0],
        "twin": [0],
    }
    assert first.chosen["twin"] == first.chosen["short"]
    assert first.chosen["short"] in ARMS[0].tries
    scored = [first.systems[name].rows[0][""] for name in ("short", "pooled", "twin")]
    assert len(scored[0].user.values) == 20
    for other in scored[1:]:
        assert other.impression.values.equals(scored[0].impression.values)
        assert not np.array_equal(other.score, scored[0].score)
    again = run_study(ARMS, BASE, str(world), tmp_path / "out", sizes)
    assert here == [4, 5]
    assert again.seconds == first.seconds
    for name, system in again.systems.items():
        for seed, folds in system.rows.items():
            assert np.array_equal(folds[""].score, first.systems[name].rows[seed][""].score)
    with pytest.raises(ConfigError, match="made with other options"):
        run_study(ARMS, {**BASE, "batch_size": 8}, str(world), tmp_path / "out", sizes)
    other = tmp_path / "other"
    make_world(WorldConfig(users=60, days=20, seed=4), other, LocalMapper())
    with pytest.raises(ConfigError, match="other options, data or model"):
        run_study(ARMS, BASE, str(other), tmp_path / "out", sizes)


@pytest.mark.slow
def test_little_time_takes_rows_away_and_no_seeds(
    world: Path, here: list[int], tmp_path: Path
) -> None:
    sizes = Sizes(rows=3000, users=20, seeds=2, other_seeds=1, max_core_hours=1e-9)
    found = run_study(ARMS[:1], BASE, str(world), tmp_path / "out", sizes)
    assert found.rows == 1000
    assert sorted(found.systems["short"].rows) == [0, 1]


def test_other_labels_change_nothing_but_labels(world: Path, tmp_path: Path) -> None:
    data = Dataset(world)
    before = data.table("impressions").to_pylist()
    own = [
        (item in row["clicks"]) + (item in row["orders"])
        for row in before
        if row["split"] != "test"
        for item in row["candidates"]
    ]
    shuffled = np.random.default_rng(0).permutation(own)
    write_labels(data, tmp_path / "shuffled", shuffled)
    other = Dataset(tmp_path / "shuffled")
    assert other.manifest.data_card_id != data.manifest.data_card_id
    assert other.table("events").equals(data.table("events"))
    labels = iter(shuffled.tolist())
    for one, two in zip(before, other.table("impressions").to_pylist(), strict=True):
        if one["split"] != "test":
            drawn = {item: next(labels) for item in one["candidates"]}
            one["clicks"] = [item for item, label in drawn.items() if label >= 1]
            one["orders"] = [item for item, label in drawn.items() if label == 2]
        assert two == one
    write_labels(data, tmp_path / "own", np.array(own))
    assert Dataset(tmp_path / "own").table("impressions").equals(data.table("impressions"))


def test_no_arm_is_called_like_a_baseline(world: Path) -> None:
    """They stand side by side in one table."""
    rules = set(cheap(prepare(Dataset(world)), 20))
    found = arms(load_yaml(Path("raysys/configs/ctr/cofars-small.yaml")), 200)
    assert {"random", "popularity", "oracle"} <= rules
    assert not rules & {arm.name for arm in found}


@pytest.mark.slow
def test_leak_tests_train_again_without_labels(
    world: Path, here: list[int], tmp_path: Path
) -> None:
    sizes = Sizes(rows=3000, users=20, seeds=1, other_seeds=1)
    study = run_study(ARMS[:1], BASE, str(world), tmp_path, sizes)
    data = prepare(Dataset(world))
    rows = study.systems["short"].rows[0][""]
    cheap = {"constant": np.zeros(len(rows))}
    found = {f.test: f for f in leak_tests(ARMS[0], BASE, data, study, tmp_path, 20, cheap)}
    assert {"random_scorer", "label_oracle", "shuffled_labels", "shuffled_history"} <= set(found)
    assert found["label_oracle"].passed and found["candidate_permutation"].passed
    assert found["shuffled_labels"].passed
    # Nothing of the suite is left out.
    assert {"list_position", "time_audit", "future_columns", "single_feature_scan", "overlap"} <= {
        name for name, finding in found.items() if not finding.note.startswith("not run")
    }
    assert here == [2, 1, *[1] * 5]
    # Each time from other weights: one start that happens to rank would lean all to one side.
    runs = [read_config(tmp_path / "shuffled" / f"short-{n}") for n in range(5)]
    assert [run.recipe_options["train"]["seed"] for run in runs] == list(range(5))
    # Kept, as every training of a study.
    again = {f.test: f for f in leak_tests(ARMS[0], BASE, data, study, tmp_path, 20, cheap)}
    assert here == [2, 1, *[1] * 5] and again == found


def test_a_page_tells_every_arm_and_claim(tmp_path: Path) -> None:
    arm = {"gauc": {"mean": 0.61, "sd": None, "n": 1}, "tuned_to": {}, "core_minutes": 1.0}
    delta = {"gauc": {"delta": 0.012, "seeds": None, "users": [0.002, 0.022]}}
    claim = {
        "claim": "a better than b in gauc", "delta": 0.012, "seeds": [0.001, 0.02],
        "users": [0.002, 0.022], "p_holm": 0.0123, "verdict": "supported", "reason": "",
    }  # fmt: skip
    untold = {
        "claim": "a better than c in gauc", "delta": None, "seeds": None, "users": None,
        "p_holm": None, "verdict": "no verdict", "reason": "no such rows",
    }  # fmt: skip
    above = {"gauc": {"delta": 0.06, "seeds": None, "users": [0.05, 0.07]}}
    found = {
        "data_card_id": "card", "trained_on_rows": 1000, "folds": 1,
        "test": {"rows": 10, "users": 5},
        "window": 99,
        "core_hours": 0.1, "arms": {"a": arm, "b": arm},
        "a_minus": {"b": delta, "popularity": above},
        "claims": [claim, untold], "baselines": {"popularity": {"gauc": 0.55}},
        "placebo_gains": {"p": {"over": "b", "gain": {"gauc": 0.001}, "of": {"gauc": 0.01},
                                "below_half": True}},
        "slices": {},
        "leak_tests": {
            "overlap": {"passed": None, "figures": {"items": 3.0}, "note": ""},
            "time_audit": {"passed": None, "figures": {}, "note": "not run: needs times"},
        },
    }  # fmt: skip
    write_page(found, tmp_path, "a", "gauc")
    assert (tmp_path / "differences.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.md").read_text()
    for line in (
        "| b | 1 | 0.6100 | +0.0120 [+0.0020, +0.0220] |  |",
        "| a better than b in gauc | +0.0120 | [+0.0010, +0.0200] | [+0.0020, +0.0220] | 0.0123 "
        "| supported |",
        "| popularity | 0.5500 | +0.0600 [+0.0500, +0.0700] |",
        "| a better than c in gauc |  |  |  |  | no verdict (no such rows) |",
        "| time_audit | not run: needs times |  |",
        "Gain of p over b in gauc +0.0010 of +0.0100, under half in every metric",
        "| overlap | printed only | items 3 |",
    ):
        assert line in page


def test_arms_share_the_base_and_name_their_own_faults() -> None:
    given = {"data": "D"}
    config = ARMS[0].config({**BASE, "cofars": {"lists": {}}}, {"train.lr": 0.5}, 7, given)
    assert (config.train.lr, config.train.seed, config.batch_size) == (0.5, 7, 16)
    pooled = ARMS[1].config(BASE, {}, 0, given)
    assert pooled.model.model_dump()["history_length"] == 5
    wrong = Arm(name="wrong", recipe="ctr/din", options={"model.attention_hiden": [8]})
    with pytest.raises(ConfigError, match=r"arm wrong: .*attention_hidden"):
        wrong.config(BASE, {}, 0, given)
    uneven = [ARMS[0], Arm(name="idle", recipe="ctr/din", tries=({},))]
    with pytest.raises(ConfigError, match="equally often"):
        run_study(uneven, BASE, "nowhere", Path("out"), Sizes())


def test_every_arm_of_cofars_is_a_valid_recipe() -> None:
    base = load_yaml(Path("raysys/configs/ctr/cofars-small.yaml"))
    found = arms(base, window=200)
    lengths = {}
    for arm in found:
        for point in arm.tries or ({},):
            config = arm.config(base, point, 0, {"data": "D"})
            assert config.train.epochs == base["train"]["epochs"]
            model: Any = config.model
            retriever = getattr(model, "retriever", None)
            lengths[arm.name] = retriever.gathered if retriever else model.history_length
    # One K for all that choose K events, one window for all that search.
    k = base["cofars"]["lists"]["events"]
    chosen = {"recent", "recent-plain", "random-k", "exact", "counted-js"}
    assert {lengths[name] for name in chosen} == {k}
    searched = {"sim-hard", "sim-soft", "eta", "sdim", "twin", "full", "dcnv2", "finalmlp"}
    assert {lengths[name] for name in searched} == {200}
    assert {len(arm.tries) for arm in found if arm.tuned_as is None} == {4}
    # Four tries are four different trainings.
    for arm in found:
        assert len({str(arm.config(base, p, 0, {"data": "D"})) for p in arm.tries}) in (0, 4)
        assert arm.tuned_as is None or arm.tuned_as in {other.name for other in found}
    asked = claims("eta", ("auc", "gauc_mean@user"))
    names = {arm.name for arm in found if arm.named}
    assert {c.a for c in asked} | {c.b for c in asked} <= names
    hard = next(arm for arm in arms(base, 200, "category:0") if arm.name == "sim-hard")
    assert hard.options["model.retriever.category"] == "category:0"


def rows_of(seed: int, skill: float) -> ScoredRows:
    """200 users with ten candidates; the score knows the click as well as `skill` says."""
    rng = np.random.default_rng(0)
    click = (rng.random(2000) < 0.3).astype(int)
    noise = np.random.default_rng(seed).normal(size=2000)
    user = np.repeat(np.arange(200), 10).astype(str)
    return ScoredRows.of(
        impression_id=user, user_id=user, item_id=np.tile(np.arange(10), 200).astype(str),
        score=skill * click + noise, click=click,
    )  # fmt: skip


def system(name: str, skill: float, seeds: int = 5) -> System:
    return System(name, {seed: {"": rows_of(seed + 100, skill)} for seed in range(seeds)})


def test_words_follow_the_intervals() -> None:
    # The same noise in all arms, so that equal skill is no difference at all.
    systems = {
        "good": system("good", 1.0),
        "bad": system("bad", 0.2),
        "same": system("same", 1.0),
        "few": system("few", 0.2, seeds=2),
    }
    metric = "gauc_mean@user"
    half = np.arange(2000) < 1000
    asked = [
        Claim(a="good", b="bad", metric=metric),
        Claim(a="good", b="same", metric=metric),
        Claim(a="bad", b="good", metric="auc"),
        Claim(a="good", b="few", metric=metric),
        Claim(a="good", b="bad", metric=metric, slice="half"),
        Claim(a="good", b="same", metric=metric, kind="not worse"),
        Claim(a="bad", b="good", metric=metric, kind="not worse"),
    ]
    found = judge(asked, systems, {"": {"half": half}}, effect=0.002, replicates=200)
    assert [row.verdict for row in found] == [
        "supported", "no difference shown", "contradicted", "no verdict", "supported",
        "not inferior", "non-inferiority not shown",
    ]  # fmt: skip
    assert [row.holds for row in found] == [True, False, False, False, True, True, False]
    assert found[3].n_seeds == 2
    assert found[0].a != found[4].a
    # Holm: the smallest p of five claims of superiority is multiplied by five.
    alone = judge(asked[:1], systems, {"": {}}, effect=0.002, replicates=200)[0]
    assert alone.p_holm is not None
    assert found[0].p_holm == pytest.approx(5 * alone.p_holm)
    assert found[5].p_holm is None


def test_what_cannot_be_compared_has_no_verdict_and_counts_in_the_family() -> None:
    systems = {"good": system("good", 1.0), "bad": system("bad", 0.2)}
    metric = "gauc_mean@user"
    asked = [
        Claim(a="good", b="bad", metric=metric),
        Claim(a="good", b="bad", metric=metric, slice="nowhere"),
        Claim(a="good", b="bad", metric=metric, slice="one"),
    ]
    one = {"one": np.arange(2000) < 10}
    found = judge(asked, systems, {"": one}, effect=0.002, replicates=200)
    assert [row.verdict for row in found] == ["supported", "no verdict", "no verdict"]
    assert not found[1].holds and not found[2].holds
    assert found[1].reason == "no such rows" and found[2].reason
    alone = judge(asked[:1], systems, {"": {}}, effect=0.002, replicates=200)[0]
    assert alone.p_holm is not None
    assert found[0].p_holm == pytest.approx(3 * alone.p_holm)


def test_folds_are_averaged_within_a_seed() -> None:
    def study(skill: float) -> Study:
        systems = {"a": system("a", skill), "b": system("b", 0.2)}
        return Study(
            chosen={"a": {"lr": skill}, "b": {}},
            systems=systems,
            validation={name: dict.fromkeys(range(5), skill) for name in systems},
            seconds=dict.fromkeys(systems, 10.0),
            rows=int(100 * skill),
            tuning_size={},
        )

    apart = {"fold-0": study(1.0), "fold-1": study(2.0)}
    both = merged(apart)
    assert both.chosen["a"] == {"fold-0 lr": 1.0, "fold-1 lr": 2.0}
    assert (both.rows, both.seconds["a"], both.validation["a"][3]) == (100, 20.0, 1.5)
    metric = "gauc_mean@user"
    each = [values(one.systems["a"], [metric])[metric] for one in apart.values()]
    mean = values(both.systems["a"], [metric])[metric]
    assert mean.n == 5
    assert mean.mean == pytest.approx((each[0].mean + each[1].mean) / 2)
    assert each[0].mean + 0.05 < mean.mean < each[1].mean - 0.05

    # A slice that one fold lacks is judged on the other.
    half = np.arange(2000) < 1000
    parts: Parts = {"fold-0": {"half": half}, "fold-1": {}}
    asked = [Claim(a="a", b="b", metric=metric), Claim(a="a", b="b", metric=metric, slice="half")]
    whole, cut = judge(asked, both.systems, parts, effect=0.002, replicates=200)
    assert whole.a == pytest.approx(mean.mean)
    only = {"": {"half": half}}
    alone = judge(asked, apart["fold-0"].systems, only, effect=0.002, replicates=200)
    assert cut.a == pytest.approx(alone[1].a)
    assert sliced(both.systems, parts, metric)["half"]["rows"] == 1000
    scores = {fold: {"rule": np.arange(2000.0)} for fold in apart}
    rule = constant("rule", scores, both.systems["a"])
    assert rule.rows[4].keys() == apart.keys()
    assert merged({"": apart["fold-0"]}) is apart["fold-0"]


def test_folds_are_trained_apart_and_share_the_time(tmp_path: Path) -> None:
    asked: list[tuple[str, Path, float]] = []

    def train(folder: str, at: Path, sizes: Sizes) -> Fold:
        asked.append((folder, at, sizes.max_core_hours))
        study = Study({}, {"a": system("a", 1.0, seeds=2)}, {"a": {}}, {"a": 1.0}, 5, {})
        return Fold(None, at, {}, [], study, {"rule": np.zeros(2000)})  # type: ignore[arg-type]

    one = run_folds(train, "D", tmp_path, Sizes(max_core_hours=3))
    assert list(one.by_name) == [""] and one.study is one.first.study
    two = run_folds(train, "D,E", tmp_path, Sizes(max_core_hours=3))
    assert asked == [
        ("D", tmp_path, 3.0), ("D", tmp_path / "fold-0", 1.5), ("E", tmp_path / "fold-1", 1.5),
    ]  # fmt: skip
    assert list(two.study.systems["a"].rows[1]) == ["fold-0", "fold-1"] == list(two.scores)
    assert two.by_name["fold-1"].runs("a")[1] == tmp_path / "fold-1" / "runs" / "a" / "seed-1"


def test_slices_are_those_of_a_scan(world: Path) -> None:
    data: Prepared = prepare(Dataset(world))
    log, past = data.impressions, data.histories
    test = chosen_impressions(data, "test", 25)
    assert len(np.unique(log.user[test])) == 25
    owner = np.repeat(test, np.diff(log.offsets)[test])
    flat = log.rows(test)
    rows = ScoredRows.of(
        impression_id=log.ids.take(owner),
        user_id=past.users.take(log.user[owner]),
        item_id=data.item_ids.take(log.item[flat] - 2),
        score=np.zeros(len(owner)), click=log.click[flat],
    )  # fmt: skip
    names = ("mealtime", "place", "weather", "day")
    found = slices(data, rows, names, rare=3)
    place = [data.codec.names.index(name) for name in names]
    stop = training_stop(data)
    met: dict[tuple[int, ...], int] = {}
    for user in range(len(past.users)):
        for event in range(int(past.start[user]), int(stop[user])):
            key = tuple(past.context[event, place].tolist())
            met[key] = met.get(key, 0) + 1
    count = np.array([met.get(tuple(log.context[i, place].tolist()), 0) for i in owner])
    length = (log.end - log.start)[owner]
    nothing = np.zeros(len(owner), bool)
    for name, expected in {
        "context unseen": count == 0,
        "context rare": (count > 0) & (count < 3),
        "context seen": count >= 3,
        "history<100": length < 100,
        "history>=1000": length >= 1000,
    }.items():
        assert np.array_equal(found.get(name, nothing), expected), name
    assert "context unseen" in found
    meals = [mask for name, mask in found.items() if name.startswith("mealtime=")]
    assert np.array_equal(np.sum(meals, 0), np.ones(len(owner)))
