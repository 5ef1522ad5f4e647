"""The resource plan: as many trials as the nodes hold, by plain counting."""

import pytest

from raysys.errors import ConfigError
from raysys.training import TrainConfig
from tune_spaces.runner.plan import Plan, make_plan, tune_resources

BIG = {"CPU": 8.0, "GPU": 2.0, "memory": 64e9}
SMALL = {"CPU": 2.0, "memory": 8e9}


def plan(
    nodes: list[dict[str, float]],
    *,
    memory_gb: float = 1.0,
    at_most: int | None = None,
    trials: int = 100,
    **settings: object,
) -> Plan:
    config = TrainConfig.model_validate(settings)
    return make_plan(nodes, config, trials=trials, memory_gb=memory_gb, max_concurrent=at_most)


@pytest.mark.parametrize(
    ("nodes", "given", "at_once"),
    [
        ([SMALL], {}, 2),
        ([SMALL], {"memory_gb": 5.0}, 1),  # 8 GB hold one of them
        ([SMALL, SMALL], {"threads_per_worker": 2}, 2),
        ([{"CPU": 3.0, "memory": 8e9}] * 2, {"threads_per_worker": 2}, 2),  # 6 CPUs, but not 3
        ([BIG], {"device": "cpu"}, 8),
        ([BIG], {"device": "auto"}, 2),  # one GPU each
        ([BIG, SMALL], {"device": "cuda"}, 2),
        ([BIG], {"device": "cpu", "workers": 3}, 2),
        ([BIG], {"device": "cpu", "workers": (1, 4)}, 2),
        ([SMALL], {"at_most": 1}, 1),
        ([SMALL], {"at_most": 9}, 2),
        ([BIG], {"device": "cpu", "trials": 3}, 3),
    ],
)
def test_at_once(nodes: list[dict[str, float]], given: dict[str, object], at_once: int) -> None:
    assert plan(nodes, **given).at_once == at_once  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"threads_per_worker": 3}, "needs 3 CPUs, 1.0 GB, the cluster has 4 CPUs, 16.0 GB"),
        ({"memory_gb": 9.0}, "needs 1 CPU, 9.0 GB"),
        ({"device": "cuda"}, "needs 1 CPU, 1 GPU, 1.0 GB"),
        ({"workers": 5}, "needs 5 workers of 1 CPU, 1.0 GB each"),
    ],
)
def test_impossible_plans_are_refused_with_figures(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan([SMALL, SMALL], **given)  # type: ignore[arg-type]


def test_a_nested_trial_itself_reserves_next_to_nothing() -> None:
    alone = plan([BIG], threads_per_worker=2, memory_gb=1.5)
    assert tune_resources(alone) == {"cpu": 2.0, "gpu": 1.0, "memory": 1.5e9}
    nested = plan([BIG], device="cpu", workers=2)
    assert tune_resources(nested) == {"cpu": 0.01}


def test_the_plan_in_one_line() -> None:
    line = plan([SMALL], trials=12).line()
    assert "\n" not in line
    assert "12 trials in a process of 1 CPU, 1.0 GB each, 2 at once" in line
