"""What CoFARS costs beside its rivals: time of retrieval and of whole requests, memory, training.

Same ranker, attention kernel, requests and thread in all arms; the arms take turns.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console

from bench.cofars_cost_arms import (
    SINGLE,
    Arm,
    cofars_arm,
    din_arm,
    events_found,
    make_arms,
    with_stored_lists,
)
from bench.cofars_data import Drawn
from bench.cofars_size import list_sizes
from raysys.ctr.retrievers.base import TopK
from raysys.data.batch import Pointers

AIMS = {
    "ratio_candidates": "at most 1.1",
    "ratio_history": "at most 2",
    "retrieval_speedup_vs_sim_soft": "at least 4",
    "retrieval_speedup_vs_twin": "at least 4",
    "speedup_vs_sim_soft": "2.5, at least 2",
    "speedup_vs_twin": "2.5, at least 2",
    "training_ratio_vs_din": "at most 2",
}
NOTE = (
    "Untrained weights, drawn histories: times only. Retrieval of a searching arm gathers its "
    "window, looks up the vectors and chooses K; nothing of it is kept between requests. `search` "
    "is the last of these alone. `-single` scores in single precision instead of double."
)
COMPARED = ("sim-soft", "twin", *SINGLE)
Figures = dict[str, Any]
Seconds = dict[str, list[float]]


def run(
    history: int = 2000,
    candidates: Sequence[int] = (1, 100, 1000),
    compared_at: int = 100,
    rounds: Sequence[int] = (40, 24, 4),
    turn: int = 5,
    flat_rounds: int = 60,
    history_lengths: Sequence[int] = (100, 10_000),
    users: int = 100,
    items: int = 20_000,
    k: int = 100,
    train_requests: int = 64,
    train_candidates: int = 20,
    train_rounds: int = 12,
    listed_users: int = 100_000,
    listed_events: int = 200,
    seed: int = 0,
) -> Figures:
    """Ratios of median times over alternating rounds, on one thread.

    One request at a time, of B = `candidates` candidates behind `history` events. In each of
    the `rounds` an arm answers `turn` requests in a row, as a server of one model does; `cold`
    has the speedups of the first of each turn, when other arms have filled the caches.
    Speedups are those at `compared_at`, `longer` those with the longest of `history_lengths`.
    `ratio_candidates` is the retrieval of CoFARS at the largest B over the smallest,
    `ratio_history` at the longest of `history_lengths` over the shortest.
    `training_ratio_vs_din` is the time of a training step of the ranker over one of plain DIN
    with the same K. `bytes_per_user` is measured on `listed_users` users with `listed_events`
    events on average.
    """
    with _one_thread(), tempfile.TemporaryDirectory() as scratch:
        data = Drawn.of(np.full(users, history), items, seed)
        arms = make_arms(data, history, k, seed, Path(scratch) / "main")
        found = events_found(arms["cofars"], data.pointers(np.arange(users), 1))
        flat = _flat(data, arms["cofars"], candidates, flat_rounds, turn)
        made = {length: Drawn.of(np.full(users, length), items, seed) for length in history_lengths}
        lengths = _by_history(made, k, flat_rounds, turn, seed, Path(scratch))
        times = {
            size: _serving(data, arms, size, count, turn)
            for size, count in zip(candidates, rounds, strict=True)
        }
        most = max(history_lengths)
        far = make_arms(made[most], most, k, seed, Path(scratch) / "longer", COMPARED)
        longer = _serving(made[most], far, compared_at, rounds[-1], turn)
        training = _training(data, k, train_requests, train_candidates, train_rounds, seed)
    sizes = list_sizes(listed_users, listed_events, seed)
    return {
        "bench": "cofars-cost",
        "ratio_candidates": flat["ratio"],
        "ratio_history": lengths["ratio"],
        **_speedups(times[compared_at]),
        "bytes_per_user": sizes["bytes_per_user"],
        "training_ratio_vs_din": training["ratio"],
        "aims": AIMS,
        "cold": _speedups(_first(times[compared_at], turn)),
        "longer": {"history": most, **_speedups(longer)},
        "without_any_retrieval": _without_retrieval(times[compared_at]),
        "search_alone": _search_alone(times[compared_at]),
        "lists": sizes,
        "found": found,
        "milliseconds": {
            str(size): {part: _quantiles(seconds) for part, seconds in parts.items()}
            for size, parts in times.items()
        },
        "flat": flat,
        "by_history": lengths,
        "training": training,
        "sizes": {
            "history": history,
            "users": users,
            "items": items,
            "k": k,
            "compared_at": compared_at,
            "rounds": dict(zip(map(str, candidates), rounds, strict=True)),
            "turn": turn,
            "flat_rounds": flat_rounds,
            "seed": seed,
        },
        "cpus": psutil.cpu_count(),
        "note": NOTE,
    }


def alternate(
    tasks: Mapping[str, Callable[[int], object]], rounds: int, turn: int = 1, warmup: int = 2
) -> Seconds:
    """Seconds of each task [rounds · turn], the tasks taking turns of `turn` calls in a row.

    Each round begins with another task, because what runs before a task fills the caches. A
    task gets the number of the call; those of the warm-up are below 0 and not counted.
    """
    seconds: Seconds = {name: [] for name in tasks}
    order = list(tasks)
    for index in range(-warmup, rounds):
        shift = index % len(order)
        for name in order[shift:] + order[:shift]:
            for call in range(index * turn, (index + 1) * turn):
                begin = time.perf_counter()
                tasks[name](call)
                if index >= 0:
                    seconds[name].append(time.perf_counter() - begin)
    return seconds


def _asked(data: Drawn, candidates: int) -> Callable[[int], Pointers]:
    """One request of each user, made before anything is timed."""
    users = np.arange(len(data.histories.users))
    made = [data.pointers(users[[user]], candidates) for user in users]
    return lambda index: made[index % len(made)]


def _flat(data: Drawn, arm: Arm, candidates: Sequence[int], rounds: int, turn: int) -> Figures:
    least, most = min(candidates), max(candidates)
    asked = {size: _asked(data, size) for size in (least, most)}
    seconds = alternate(
        {str(size): lambda i, ask=ask: arm.retrieve(ask(i)) for size, ask in asked.items()},
        rounds,
        turn,
    )
    return _ratio(seconds, str(most), str(least))


def _by_history(
    made: dict[int, Drawn], k: int, rounds: int, turn: int, seed: int, scratch: Path
) -> Figures:
    tasks: dict[str, Callable[[int], object]] = {}
    arms = {}
    for length, data in made.items():
        arm = with_stored_lists(cofars_arm(data, k, seed), scratch / str(length))
        arm.model.freeze()
        arms[length] = arm
        ask = _asked(made[length], 1)
        tasks[str(length)] = lambda i, arm=arm, ask=ask: arm.retrieve(ask(i))
    figures = _ratio(alternate(tasks, rounds, turn), str(max(made)), str(min(made)))
    found = {
        str(length): events_found(arm, data.pointers(np.arange(len(data.coming)), 1))
        for (length, data), arm in zip(made.items(), arms.values(), strict=True)
    }
    return {**figures, "found": found}


def _serving(
    data: Drawn, arms: dict[str, Arm], candidates: int, rounds: int, turn: int
) -> dict[str, Seconds]:
    """Seconds of retrieval, of the search alone and of whole requests."""
    asked = _asked(data, candidates)
    searching = {name: arm for name, arm in arms.items() if isinstance(arm.model.retriever, TopK)}
    at_hand = {name: arm.pairs(asked(0)) for name, arm in searching.items()}
    tasks: dict[str, dict[str, Callable[[int], object]]] = {
        "retrieval": {n: lambda i, arm=arm: arm.retrieve(asked(i)) for n, arm in arms.items()},
        "whole": {n: lambda i, arm=arm: arm.whole(asked(i)) for n, arm in arms.items()},
        "search": {
            n: lambda _, n=n, arm=arm: arm.search(at_hand[n]) for n, arm in searching.items()
        },
    }
    # The search alone is compared with a retrieval that takes turns with it.
    tasks["search"]["cofars"] = tasks["retrieval"]["cofars"]
    console = Console(stderr=True)
    out = {}
    for part, of_arms in tasks.items():
        out[part] = alternate(of_arms, rounds, turn)
        medians = {name: round(1000 * t, 2) for name, t in _medians(out[part]).items()}
        console.print(f"B={candidates} {part}: {medians} ms")
    return out


def _training(
    data: Drawn, k: int, requests: int, candidates: int, rounds: int, seed: int
) -> Figures:
    """A step of both rankers on the same batches; requests lie anywhere in the histories."""
    rng = np.random.default_rng(seed)
    start = data.histories.start

    def batch() -> Pointers:
        users = rng.integers(0, len(start) - 1, requests)
        end = start[users] + rng.integers(1, np.diff(start)[users] + 1)
        return data.pointers(users, candidates, end)

    batches = [batch() for _ in range(rounds)]
    arms = {"cofars": cofars_arm(data, k, seed), "din": din_arm(data, seed, history_length=k)}
    seconds = alternate(
        {name: arm.stepper(lambda i: batches[i % rounds]) for name, arm in arms.items()}, rounds
    )
    samples = {name: requests * candidates / median for name, median in _medians(seconds).items()}
    return {
        **_ratio(seconds, "cofars", "din"),
        "samples_per_s": samples,
        "requests": requests,
        "candidates": candidates,
    }


def _speedups(times: dict[str, Seconds]) -> dict[str, float]:
    out = {}
    for part, name in (("retrieval", "retrieval_speedup"), ("whole", "speedup")):
        median = _medians(times[part])
        for rival in COMPARED:
            out[f"{name}_vs_{rival.replace('-', '_')}"] = median[rival] / median["cofars"]
    return out


def _first(times: dict[str, Seconds], turn: int) -> dict[str, Seconds]:
    """The first call of each turn."""
    return {
        part: {name: values[::turn] for name, values in seconds.items()}
        for part, seconds in times.items()
    }


def _without_retrieval(times: dict[str, Seconds]) -> dict[str, float]:
    """Whole requests of rivals over one of the newest K events: no retrieval can gain more."""
    median = _medians(times["whole"])
    return {name: median[name] / median["recent"] for name in COMPARED}


def _search_alone(times: dict[str, Seconds]) -> dict[str, float]:
    """The time of each search alone over a whole retrieval of CoFARS."""
    median = _medians(times["search"])
    return {name: value / median["cofars"] for name, value in median.items() if name != "cofars"}


def _medians(seconds: Seconds) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def _ratio(seconds: Seconds, over: str, under: str) -> Figures:
    median = _medians(seconds)
    return {"ratio": median[over] / median[under], "milliseconds": _quantiles(seconds)}


def _quantiles(seconds: Seconds) -> dict[str, dict[str, float]]:
    return {
        name: {
            f"p{q}": round(1000 * float(np.quantile(values, q / 100, method="higher")), 3)
            for q in (50, 99)
        }
        for name, values in seconds.items()
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
