"""The cost test of CoFARS on tiny sizes: what it measures, not how long that takes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.cofars_cost import COMPARED, alternate, run
from bench.cofars_cost_arms import SINGLE, make_arms, rivals
from bench.cofars_data import CONTEXTS, Drawn, spread_lengths
from bench.cofars_size import list_sizes
from raysys.ctr.retrievers.base import TopK

ARMS = {"cofars", "recent", "sim-soft", "sim-hard", "eta", "sdim", "twin", "full", *SINGLE}


def test_tasks_take_turns_and_the_warm_up_is_not_counted() -> None:
    calls: list[tuple[str, int]] = []
    tasks = {name: lambda i, name=name: calls.append((name, i)) for name in "ab"}
    seconds = alternate(tasks, rounds=2, turn=2, warmup=1)
    assert [name for name, _ in calls] == list("bbaaaabbbbaa")
    assert [i for name, i in calls if name == "a"] == [-2, -1, 0, 1, 2, 3]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4}


def test_drawn_users_have_habits_of_their_own() -> None:
    lengths = np.array([300, 0, 500])
    data = Drawn.of(lengths, 50, seed=1)
    past = data.histories
    assert np.diff(past.start).tolist() == lengths.tolist()
    assert len(past.item) == len(past.ts) == len(past.context) == 800
    assert past.item.min() >= 2 and past.item.max() < 52
    assert (past.context.min(0) == 2).all() and data.coming.shape == (3, len(CONTEXTS))
    for column, shares in enumerate(CONTEXTS.values()):
        own = [
            np.bincount(past.context[a:b, column] - 2, minlength=len(shares)) / (b - a)
            for a, b in ((0, 300), (300, 800))
        ]
        assert len(own[0]) == len(shares)  # no value beyond the declared ones
        assert np.abs(own[0] - own[1]).max() > 0.02
    again = Drawn.of(lengths, 50, seed=1)
    assert np.array_equal(past.context, again.histories.context)
    lengths = spread_lengths(4000, 200.0, 10_000, seed=0)
    assert lengths.min() >= 1 and abs(lengths.mean() - 200) < 20


def test_arms_share_all_but_their_search(tmp_path: Path) -> None:
    data = Drawn.of(np.full(6, 80), 60, seed=0)
    arms = make_arms(data, 80, 10, 0, tmp_path / "lists")
    assert set(arms) == ARMS and set(rivals(80, 10)) == ARMS - {"cofars", *SINGLE}
    asked = data.pointers(np.array([2]), 7)
    units = {name: arm.model.attention for name, arm in arms.items()}
    assert {name for name, unit in units.items() if unit is None} == {"sdim"}
    first = units["recent"]
    assert first is not None
    for name, unit in units.items():
        if unit is not None:
            same = [
                torch.equal(a, b)
                for a, b in zip(unit.parameters(), first.parameters(), strict=True)
            ]
            assert same and all(same), name
    for name, arm in arms.items():
        rows = arm.collator.rows(asked)
        assert rows.shape == (1, 10 if name in ("cofars", "recent") else 80)
        assert arm.whole(asked).score.shape == (1, 7)
        if isinstance(arm.model.retriever, TopK):
            index, real = arm.retrieve(asked)
            assert index.shape == real.shape == (1, 7, 10)
            assert torch.equal(index, arm.search(arm.pairs(asked))[0])
    # In single precision the same events are found, ties and rounding aside.
    for name in SINGLE:
        double, single = (arms[n].retrieve(asked)[0] for n in (name.removesuffix("-single"), name))
        both = [
            len({*a} & {*b}) for a, b in zip(double[0].tolist(), single[0].tolist(), strict=True)
        ]
        assert min(both) >= 9


def test_bytes_are_counted_over_all_parts() -> None:
    whole, parts = (list_sizes(40, 30.0, 0, part) for part in (40, 20))
    arrays = whole["bytes_per_user_by_array"]
    steps, pairs = whole["steps_per_user"], whole["contexts_per_user"]
    assert arrays["entry"] == 8 * whole["events_per_user"] == 8 * parts["events_per_user"]
    assert np.isclose(arrays["moves"], 3 * 4 * steps)
    assert np.isclose(arrays["nightly_similarity"], 16 * 4 * pairs)
    assert np.isclose(arrays["bits"], 2 * pairs)
    assert arrays["nightly_prototypes"] == 16 * 32 * 4
    assert np.isclose(sum(arrays.values()), whole["bytes_per_user"])


@pytest.mark.slow
def test_a_tiny_run_gives_all_figures() -> None:
    threads = torch.get_num_threads()
    result = run(
        history=60,
        candidates=(1, 3),
        compared_at=3,
        rounds=(2, 2),
        turn=2,
        flat_rounds=2,
        history_lengths=(20, 70),
        users=5,
        items=50,
        k=10,
        train_requests=4,
        train_candidates=3,
        train_rounds=2,
        listed_users=10,
        listed_events=20,
    )
    assert torch.get_num_threads() == threads
    for name in result["aims"]:
        assert result[name] > 0, name
    for size in ("1", "3"):
        for part in ("retrieval", "whole"):
            times = result["milliseconds"][size][part]
            assert set(times) == ARMS
            assert all(0 < time["p50"] <= time["p99"] for time in times.values())
    ratio = result["milliseconds"]["3"]["whole"]
    wanted = ratio["twin"]["p50"] / ratio["cofars"]["p50"]
    assert 0.2 < result["speedup_vs_twin"] / wanted < 5  # p50 is one of the times, rounded
    assert len(result["cold"]) == 2 * len(COMPARED)
    assert result["found"]["events_found"] == 10
    assert result["longer"]["history"] == 70
