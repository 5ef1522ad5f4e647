"""The ledger and the search: cut anywhere and replayed, a sweep decides as if undisturbed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import ArtifactError
from tune_spaces.runner.ledger import ENDED, Book, Trial
from tune_spaces.runner.search import Search
from tune_spaces.runner.space import Choice, Halving, Real, Space, Whole

EPOCHS = 6
SPACE = Space(
    recipe="ctr/din",
    metric="gauc",
    mode="max",
    search={
        "train.lr": Real(low=1e-4, high=1.0, log=True),
        "train.warmup_steps": Whole(low=0, high=9),
        "model.dropout": Real(low=0.0, high=0.5),
        "model.match": Choice(values=(False, True)),
    },
    halving=Halving(grace=1, factor=2),
)
GRID = SPACE.model_copy(update={"grid": {"batch_size": (8, 16)}})
AT_BEST = GRID.model_copy(update={"at_best": True})


def value(trial: Trial, epoch: int) -> float:
    """A planted objective: best at lr 0.03 without dropout; later epochs are better."""
    lr, dropout = float(trial.parameters["train.lr"]), float(trial.parameters["model.dropout"])
    return 1 - abs(np.log10(lr / 0.03)) / 4 - dropout / 5 + epoch / 100 + trial.seed / 1000


def play(path: Path, space: Space, samples: int, seeds: int, concurrent: int, order: int) -> Search:
    """Run what is left of the sweep of `path`, `concurrent` trials in a drawn interleaving."""
    search = Search(
        space, samples=samples, seeds=seeds, seed=5, epochs=EPOCHS, book=Book.open(path)
    )
    rng = np.random.default_rng(order)
    live: list[Trial] = []
    while True:
        while len(live) < concurrent and (fresh := search.next()) is not None:
            live.append(fresh)
        if not live:
            return search
        trial = live[int(rng.integers(len(live)))]
        epoch = min(trial.epoch + 1, EPOCHS)  # a driver may have died between the last and "end"
        stop = search.report(trial.id, epoch, value(trial, epoch), 1.0 * epoch, epoch == EPOCHS)
        if epoch == EPOCHS:
            bad = float(trial.parameters["train.lr"]) > 0.9
            search.end(trial.id, "not finite" if bad else None)
        if stop or epoch == EPOCHS:
            live.remove(trial)


def story(search: Search) -> dict[str, Any]:
    return {name: vars(trial) for name, trial in search.book.trials.items()}


def test_a_sweep_gives_out_every_trial_once_and_ends_all(tmp_path: Path) -> None:
    search = play(tmp_path / "l", SPACE, samples=9, seeds=1, concurrent=1, order=0)
    trials = list(search.book.trials.values())
    assert [trial.id for trial in trials] == [f"p{n:03d}" for n in range(9)]
    assert all(trial.status in ENDED for trial in trials)
    assert {trial.status for trial in trials} == {"completed", "stopped"}
    assert len({json.dumps(trial.parameters) for trial in trials}) == 9
    for trial in trials:
        assert 1e-4 <= trial.parameters["train.lr"] <= 1.0
        assert trial.parameters["train.warmup_steps"] in range(10)
        assert (trial.epoch == EPOCHS) == (trial.status == "completed")


def test_a_stopped_trial_was_worse_than_the_cut_at_its_rung(tmp_path: Path) -> None:
    """ASHA's rule in plain Python: at epochs 1, 2, 4 the value must reach the median of those
    that came to this rung before."""
    search = play(tmp_path / "l", SPACE, samples=12, seeds=1, concurrent=3, order=1)
    before: dict[int, list[float]] = {1: [], 2: [], 4: []}
    stops = 0
    for event in search.book.events:
        if event["kind"] != "report":
            continue
        rung = before.get(event["epoch"])
        cut = -np.inf if not rung else np.percentile(rung, 50)
        stops += event["stop"]
        assert event["stop"] == (rung is not None and event["value"] < cut), event
        if rung is not None:
            rung.append(event["value"])
    assert stops


@pytest.mark.slow
def test_the_search_learns(tmp_path: Path) -> None:
    """Its later suggestions are better than its first, random ones, also where less is better."""
    for mode, sign in (("max", 1), ("min", -1)):
        space = SPACE.model_copy(update={"mode": mode, "halving": None})
        book = Book.open(tmp_path / mode)
        search = Search(space, samples=40, seeds=1, seed=1, epochs=1, book=book)
        values = []
        while (trial := search.next()) is not None:
            values.append(value(trial, 1))
            search.report(trial.id, 1, sign * values[-1], 1.0, True)
            search.end(trial.id)
        assert np.mean(values[-15:]) > np.mean(values[:10]) + 0.1


def test_equal_seeds_equal_suggestions_and_other_seeds_others(tmp_path: Path) -> None:
    a = play(tmp_path / "a", SPACE, samples=6, seeds=1, concurrent=1, order=0)
    b = play(tmp_path / "b", SPACE, samples=6, seeds=1, concurrent=1, order=7)
    assert story(a) == story(b)
    book = Book.open(tmp_path / "c")
    other = Search(SPACE, samples=6, seeds=1, seed=6, epochs=EPOCHS, book=book).next()
    assert other is not None
    assert other.parameters != a.book.trials["p000"].parameters


@pytest.mark.slow
@settings(max_examples=25)
@given(
    cut=st.floats(0, 1),
    torn=st.integers(0, 40),
    concurrent=st.integers(1, 3),
    kind=st.sampled_from([(SPACE, 1), (GRID, 2), (AT_BEST, 2)]),
)
def test_cut_anywhere_and_resumed(
    tmp_path_factory: pytest.TempPathFactory,
    cut: float,
    torn: int,
    concurrent: int,
    kind: tuple[Space, int],
) -> None:
    """Whatever prefix of the ledger survives, a resumed sweep has the same trials; one at a
    time, it ends in the same results to the last bit."""
    folder = tmp_path_factory.mktemp("cut")
    space, seeds = kind
    whole = play(folder / "whole", space, 5, seeds, concurrent, order=3)
    lines = (folder / "whole").read_bytes().splitlines(keepends=True)
    kept = int(cut * len(lines))
    rest = b"".join(lines[kept:])[:torn]
    (folder / "cut").write_bytes(b"".join(lines[:kept]) + (b"" if b"\n" in rest else rest))
    resumed = play(folder / "cut", space, 5, seeds, concurrent, order=4)
    assert list(resumed.book.trials) == list(whole.book.trials)
    assert all(trial.status in ENDED for trial in resumed.book.trials.values())
    if concurrent == 1:
        assert story(resumed) == story(whole)
        assert (folder / "cut").read_bytes() == (folder / "whole").read_bytes()
    assert (folder / "cut").read_bytes().startswith(b"".join(lines[:kept]))


def test_a_point_is_told_as_the_mean_over_its_grid_and_seeds(tmp_path: Path) -> None:
    search = play(tmp_path / "l", GRID, samples=3, seeds=2, concurrent=2, order=0)
    assert len(search.book.trials) == 3 * 2 * 2
    assert list(search.book.trials)[:4] == ["p000-g0-s5", "p000-g0-s6", "p000-g1-s5", "p000-g1-s6"]
    # No member of a mean may be stopped.
    assert {trial.status for trial in search.book.trials.values()} <= {"completed", "failed"}
    for point, told in enumerate(search._optuna._ot_study.trials):
        mine = [t for t in search.book.trials.values() if t.point == point]
        if all(t.status == "completed" for t in mine):
            assert told.value == pytest.approx(np.mean([t.value for t in mine]), abs=1e-12)
        else:
            assert told.value is None


def test_the_grid_of_the_best_comes_last_and_has_all_seeds(tmp_path: Path) -> None:
    search = play(tmp_path / "l", AT_BEST, samples=9, seeds=2, concurrent=3, order=0)
    trials = list(search.book.trials.values())
    assert len(trials) == AT_BEST.trials(9, 2) == 9 + 2 * 2
    first, last = trials[:9], trials[9:]
    assert [(t.id, t.seed) for t in first] == [(f"p{n:03d}", 5) for n in range(9)]
    # The suggestions are halved, the members of a mean are not.
    assert "stopped" in {t.status for t in first}
    best = max((t for t in first if t.status == "completed"), key=lambda t: t.value or 0)
    assert [(t.id, t.seed, t.parameters) for t in last] == [
        (f"p009-g{cell}-s{seed}", seed, {**best.parameters, "batch_size": size})
        for cell, size in enumerate((8, 16))
        for seed in (5, 6)
    ]
    assert {t.status for t in last} == {"completed"}
    assert len(search._optuna._ot_study.trials) == 9


def test_the_grid_of_the_best_waits_for_all_suggestions(tmp_path: Path) -> None:
    space = AT_BEST.model_copy(update={"mode": "min", "halving": None})
    book = Book.open(tmp_path / "l")
    search = Search(space, samples=2, seeds=1, seed=5, epochs=1, book=book)
    one, two = search.next(), search.next()
    assert one is not None
    assert two is not None
    search.report(one.id, 1, 0.1, 1.0, True)
    search.end(one.id)
    assert search.next() is None
    assert search.waits
    search.report(two.id, 1, 0.3, 1.0, True)
    search.end(two.id)
    third = search.next()
    assert third is not None
    assert third.parameters == {**one.parameters, "batch_size": 8}
    assert search.next() is not None
    assert search.next() is None
    assert not search.waits


def test_without_a_best_the_grid_has_the_values_of_the_recipe(tmp_path: Path) -> None:
    book = Book.open(tmp_path / "l")
    search = Search(AT_BEST, samples=1, seeds=1, seed=5, epochs=1, book=book)
    only = search.next()
    assert only is not None
    search.end(only.id, "the loss is nan")
    third = search.next()
    assert third is not None
    assert third.parameters == {"batch_size": 8}


def test_told_twice_is_counted_once(tmp_path: Path) -> None:
    book = Book.open(tmp_path / "l")
    search = Search(SPACE, samples=2, seeds=1, seed=5, epochs=EPOCHS, book=book)
    trial = search.next()
    assert trial is not None
    for _ in range(2):
        search.report(trial.id, 1, 0.5, 1.0, False)
        search.report(trial.id, 2, 0.6, 2.0, True)
    search.end(trial.id)
    search.end(trial.id, "too late")
    assert [event["kind"] for event in book.events] == ["suggest", "report", "report", "end"]
    assert (trial.status, trial.message, trial.value) == ("completed", None, 0.6)


def test_a_damaged_ledger_is_refused_with_its_line(tmp_path: Path) -> None:
    play(tmp_path / "l", SPACE, samples=3, seeds=1, concurrent=1, order=0)
    lines = (tmp_path / "l").read_text().splitlines()
    damaged = tmp_path / "damaged"
    damaged.write_text("\n".join([*lines[:2], lines[2][:-3], *lines[3:]]) + "\n")
    with pytest.raises(ArtifactError, match="line 3: damaged"):
        Book.open(damaged)


def test_a_ledger_of_other_decisions_is_refused(tmp_path: Path) -> None:
    """A replay that would decide otherwise must not go on as if it were the same sweep."""
    play(tmp_path / "l", SPACE, samples=4, seeds=1, concurrent=1, order=0)
    shutil.copy(tmp_path / "l", tmp_path / "other")
    lines = [json.loads(line) for line in (tmp_path / "other").read_text().splitlines()]
    lines[0]["parameters"]["train.lr"] *= 2
    (tmp_path / "other").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ArtifactError, match=r"line 1: says .* but the search decides"):
        play(tmp_path / "other", SPACE, samples=4, seeds=1, concurrent=1, order=0)
