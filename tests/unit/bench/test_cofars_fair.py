"""The verdict of CoFARS's fair test, word by word, and one study from end to end."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bench import cofars_fair
from bench.cofars_arms import CANDIDATE_AWARE, PLACEBOS, arms
from bench.fair import study as study_module
from bench.fair.results import gains as gains_of
from raysys.data.mapping import LocalMapper
from raysys.data.world import Effects, WorldConfig, make_world
from raysys.errors import ConfigError
from raysys.metrics import ScoredRows
from raysys.metrics.compare import System
from raysys.options import load_yaml

METRIC = "gauc_mean@user"
CONFIG = Path(cofars_fair.__file__).parents[1] / "raysys/configs/ctr/cofars-small.yaml"


def claim(other: str, verdict: str, reason: str = "") -> dict[str, Any]:
    return {
        "claim": f"cofars better than {other} in auc", "verdict": verdict, "reason": reason,
    }  # fmt: skip


def found(**changed: Any) -> dict[str, Any]:
    """A study in which everything holds, with some of it changed."""
    return {
        "headline": METRIC,
        "planted": False,
        "supported_but_cost": True,
        "not_worse_than_best": True,
        "beyond_window": 0.0,
        "window": 1000,
        "leak_tests": {"label_oracle": {"passed": True}, "list_position": {"passed": None}},
        "claims": [claim("recent", "supported")],
        "baselines": {
            "repeat": {METRIC: 0.55}, "gbdt_pointwise": {METRIC: 0.66},
            "gbdt_lambdarank": {METRIC: 0.65}, "oracle": {METRIC: 0.9},
        },
        "cofars_minus": {
            "gbdt_pointwise": {METRIC: {"delta": -0.01, "users": [-0.02, -0.001]}},
            "repeat": {METRIC: {"delta": 0.1, "users": [0.09, 0.11]}},
        },
        **changed,
    }  # fmt: skip


BESIDE = (
    f"{METRIC} is below gbdt_pointwise (-0.0100 [-0.0200, -0.0010]) and above repeat "
    "(+0.1000 [+0.0900, +0.1100]); "
)
LOST = {"supported_but_cost": False}


@pytest.mark.parametrize(
    ("data", "placebo", "words"),
    [
        (found(), None, BESIDE + "supported, if retrieval time is flat (cofars-cost)"),
        (
            found(**LOST),
            None,
            BESIDE + "not supported in quality; not inferior to the best candidate-aware arm, so "
            "cheaper at equal quality if cofars-cost shows it",
        ),
        (found(**LOST, not_worse_than_best=False), None, BESIDE + "not supported"),
        (
            found(planted=True),
            found(planted=True, claims=[]),
            BESIDE + "planted data, which support nothing beyond correctness: the law is found; "
            "with the law off it does not win",
        ),
        (
            found(planted=True),
            None,
            BESIDE + "planted data, which support nothing beyond correctness: the law is found; "
            "the world without it not run",
        ),
        (
            found(planted=True, **LOST),
            None,
            BESIDE + "planted data: the law is not recovered as it should be",
        ),
        (
            found(planted=True),
            found(planted=True),
            BESIDE + "not supported: CoFARS also wins where the context law is off",
        ),
        (
            found(claims=[claim("x", "no verdict")]),
            None,
            BESIDE + "no verdict: not to be judged here is that cofars better than x in auc "
            "(too few seeds)",
        ),
        (
            found(claims=[claim("x", "no verdict", "no such rows")]),
            None,
            BESIDE + "no verdict: not to be judged here is that cofars better than x in auc "
            "(no such rows)",
        ),
        (
            found(beyond_window=0.527),
            None,
            BESIDE + "supported, if retrieval time is flat (cofars-cost); 53% of the requests have "
            "more events than the 1000 that searching arms saw",
        ),
        (
            found(leak_tests={"time_audit": {"passed": False}}),
            None,
            "not to be trusted: time_audit failed",
        ),
    ],
)
def test_the_words_of_the_verdict(
    data: dict[str, Any], placebo: dict[str, Any] | None, words: str
) -> None:
    result = {"data": data} | ({} if placebo is None else {"placebo": placebo})
    assert cofars_fair._verdict(result) == words


def test_a_part_of_the_study_says_that_it_is_one() -> None:
    claims = [claim("counted-js", "supported"), claim("counted-js", "no difference shown")]
    part = found(arms={"cofars": {}, "counted-js": {}}, claims=claims)
    assert cofars_fair._part(part) == (
        "no verdict on the whole, only cofars, counted-js were run: 1 of the 2 claims about them "
        "are shown"
    )
    leaking = found(leak_tests={"overlap": {"passed": False}})
    assert cofars_fair._part(leaking) == "not to be trusted: overlap failed"


@pytest.mark.parametrize(
    ("only", "words"),
    [
        (["recent"], "cofars and others of recent, "),
        (["cofars", "sim"], "cofars and others of"),
        (["cofars", "cofars-inner"], None),
    ],
)
def test_arms_are_named_as_they_are_called(only: list[str], words: str | None) -> None:
    every = arms(load_yaml(CONFIG), 100)
    if words is None:
        assert [arm.name for arm in cofars_fair._wanted(every, only)] == only
        assert cofars_fair._wanted(every, None) == every
        return
    with pytest.raises(ConfigError, match=words):
        cofars_fair._wanted(every, only)


def test_a_placebo_is_below_half_only_if_it_is_in_every_metric() -> None:
    rng = np.random.default_rng(0)
    click = (rng.random(4000) < 0.3).astype(int)
    user = np.repeat(np.arange(400), 10).astype(str)
    noise = rng.normal(size=4000)

    def system(name: str, skill: float) -> System:
        rows = ScoredRows.of(
            impression_id=user, user_id=user, item_id=np.tile(np.arange(10), 400).astype(str),
            score=skill * click + noise, click=click,
        )  # fmt: skip
        return System(name, {0: {"": rows}})

    skills = {"recent": 0.2, "cofars": 1.0, PLACEBOS[0]: 0.3, PLACEBOS[1]: 0.9}
    systems = {name: system(name, skill) for name, skill in skills.items()}
    gains = gains_of(systems, cofars_fair.SUBJECT, ("auc", METRIC))
    assert gains[PLACEBOS[0]]["below_half"] and not gains[PLACEBOS[1]]["below_half"]
    for metric in ("auc", METRIC):
        assert 0 < gains[PLACEBOS[0]]["gain"][metric] < gains[PLACEBOS[0]]["of"][metric]


@pytest.mark.slow
def test_a_study_of_a_world_and_its_placebo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run_tasks(
        fn: Callable[[Any], Any], tasks: Sequence[Any], *, label: str, num_cpus: float
    ) -> Iterator[Any]:
        return map(fn, tasks)

    monkeypatch.setattr(study_module, "run_tasks", run_tasks)
    monkeypatch.setattr(study_module, "ensure_ray", lambda env: True)
    for name, effects in (("W", Effects()), ("P", Effects(context=False))):
        config = WorldConfig(users=60, days=20, seed=3, effects=effects)
        make_world(config, tmp_path / name, LocalMapper())
    base = load_yaml(Path("raysys/configs/ctr/cofars-small.yaml"))
    base["cofars"]["preferences"]["support"] = 5
    base["cofars"]["lists"]["events"] = 5
    base["model"] |= {"embedding_dim": 4, "attention_hidden": [4], "hidden": [4]}
    base["selector"]["warm_up"]["epochs"] = base["train"]["epochs"] = 1
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    result = cofars_fair.run(
        data=str(tmp_path / "W"),
        placebo=str(tmp_path / "P"),
        config=str(tmp_path / "base.yaml"),
        out=str(tmp_path / "out"),
        seeds=2,
        other_seeds=1,
        rows=2000,
        valid_rows=500,
        users=40,
        replicates=50,
    )
    assert set(result["placebo"]["arms"]) < set(result["data"]["arms"])
    for part in (result["data"], result["placebo"]):
        assert {"cofars", "recent", *PLACEBOS, *CANDIDATE_AWARE} <= set(part["arms"])
        assert part["beyond_window"] == 0.0
        # Two seeds are too few for words.
        assert {row["verdict"] for row in part["claims"]} == {"no verdict"}
        assert set(part["recovery"]) >= {"cofars", *PLACEBOS}
        assert "time_audit" in part["leak_tests"]
        assert set(part["cofars_minus"]) >= {"repeat", "gbdt_pointwise", "oracle", "full"} & (
            set(part["arms"]) | set(part["baselines"])
        )
    # So few requests may also not tell a history from another one.
    assert "no verdict: " in result["verdict"] or "not to be trusted: " in result["verdict"]
    page = cofars_fair.markdown(result)
    assert page.startswith("Verdict: **") and "The same with the context law off" in page
    assert (tmp_path / "out" / "data" / "report.md").is_file()
