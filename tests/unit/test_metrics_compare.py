"""`raysys compare` from files to verdict, and the share of the oracle gap."""

import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from raysys.cli.compare import compare as command
from raysys.errors import MetricError
from raysys.metrics import ScoredRows, System, compare, evaluate, gap_share, load_system

USERS, PER_USER, SIZE = 80, 3, 10
SEEDS = range(1, 6)


def rows(skill: float, seed: int, card: str = "card", fold: int = 0, users: int = USERS):
    """The same slates for every skill and seed; the seed only moves the model."""
    world, model = np.random.default_rng(fold), np.random.default_rng(100 + seed)
    n = users * PER_USER * SIZE
    truth, noise = world.normal(size=n), world.normal(size=n)
    click = world.random(n) < 1 / (1 + np.exp(1.5 - truth))
    score = skill * truth + 0.4 * noise + 0.02 * model.normal(size=n)
    impression = np.arange(n) // SIZE
    return ScoredRows.of(
        impression_id=[f"i{i}" for i in impression],
        user_id=[f"u{i % users}" for i in impression],
        item_id=[f"{j % 50}" for j in range(n)],
        score=score,
        click=click,
        p_click=1 / (1 + np.exp(1.5 - score)),
        data_card_id=card,
        split="test",
    )


def system(skill: float, seeds=SEEDS, **options) -> System:
    return System(f"skill {skill}", {s: {"": rows(skill, s, **options)} for s in seeds})


def options(**changes):
    return {"claims": ["gauc_mean@impression"], "replicates": 300} | changes


def test_better_worse_and_equal() -> None:
    better = compare(system(0.8), system(0.4), **options()).metrics[0]
    assert better.verdict == "supported"
    assert better.seeds.low > 0
    assert better.users.low > 0
    assert better.delta == pytest.approx(better.users.delta, abs=1e-12)
    assert compare(system(0.4), system(0.8), **options()).metrics[0].verdict == "contradicted"
    same = compare(system(0.8), system(0.8), **options()).metrics[0]
    assert (same.delta, same.verdict) == (0.0, "no difference shown")
    kept = compare(system(0.8), system(0.8), **options(non_inferior=True)).metrics[0]
    assert kept.verdict == "not inferior"


def test_values_are_those_of_evaluate_whatever_the_row_order() -> None:
    shuffled = np.random.default_rng(0).permutation(USERS * PER_USER * SIZE)
    a = system(0.8, [1, 2])
    b = System("b", {s: {"": rows(0.4, s).take(shuffled)} for s in (1, 2)})
    names = ["auc", "ece", "logloss", "gauc_weighted@user", "ndcg@5@impression"]
    found = compare(a, b, claims=names[:1], also=names[1:], replicates=100)
    for metric in found.metrics:
        for arm, source in ((metric.a, a), (metric.b, b)):
            values = [
                evaluate(r[""], [metric.name])[metric.name].value for r in source.rows.values()
            ]
            assert arm.mean == pytest.approx(np.mean(values), abs=1e-12)
        assert metric.users.delta == pytest.approx(metric.delta, abs=1e-9)
        assert metric.users.low <= metric.delta <= metric.users.high
    assert [m.verdict for m in found.metrics] == ["no verdict"] + [None] * 4


def test_lower_is_better_for_loss() -> None:
    a, b = system(1.0), system(0.1)
    found = compare(a, b, claims=["logloss"], replicates=100).metrics[0]
    assert found.delta < 0
    assert found.verdict == "supported"
    with pytest.raises(MetricError, match="no better direction"):
        compare(a, b, claims=["calib_ratio"])


def test_several_claims_pay_holm() -> None:
    names = ["gauc_mean@impression", "mrr@impression"]
    found = compare(system(0.8), system(0.4), claims=names, replicates=200).metrics
    assert all(m.p_holm >= m.p for m in found)
    assert max(m.p_holm for m in found) >= 2 * min(m.p for m in found)


def test_folds_are_averaged_within_a_seed() -> None:
    def folded(skill: float) -> System:
        of = lambda s: {f"fold-{k}": rows(skill, s, card=f"c{k}", fold=k) for k in (0, 1)}  # noqa: E731
        return System("s", {s: of(s) for s in SEEDS})

    found = compare(folded(0.8), folded(0.4), **options(also=["auc"]))
    assert found.data_card_ids == ["c0", "c1"]
    assert not found.mixed_data
    one = [evaluate(rows(0.8, 1, fold=k), ["auc"])["auc"].value for k in (0, 1)]
    assert found.metrics[1].a.n == 5
    assert found.metrics[1].a.mean == pytest.approx(np.mean(one), abs=0.01)
    for metric in found.metrics:
        assert metric.users.delta == pytest.approx(metric.delta, abs=1e-12)


def changed(**fields) -> System:
    return System("b", {s: {"": replace(rows(0.4, s), **fields)} for s in SEEDS})


@pytest.mark.parametrize(
    ("b", "message"),
    [
        (system(0.4, card="other"), "different data .data cards card, other."),
        (system(0.4, seeds=[1, 2, 3, 4]), "paired over shared seeds"),
        (system(0.4, users=79), "has another user|is not among|not the 2400"),
        (changed(click=1 - rows(0.4, 1).click), "another click in row 0"),
        (
            System("b", {s: {"": rows(0.4, s).take(np.arange(2390))} for s in SEEDS}),
            "scored 2390 rows, not the 2400.*it lacks row 2390 .impression 'i239'",
        ),
    ],
)
def test_unlike_things_are_not_compared(b: System, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        compare(system(0.8), b, **options())


def test_mixed_data_can_be_forced_and_is_marked() -> None:
    found = compare(system(0.8), system(0.4, card="x"), **options(allow_mixed_data=True))
    assert found.mixed_data
    assert found.data_card_ids == ["card", "x"]


@pytest.fixture
def runs(tmp_path):
    for name, skill in (("a", 0.8), ("b", 0.4)):
        for seed in SEEDS:
            path = tmp_path / name / f"seed-{seed}" / "scores" / "test.parquet"
            rows(skill, seed).write_parquet(path)
    return tmp_path


def invoke(*arguments) -> tuple[str, BaseException | None]:
    app = typer.Typer()
    app.command("compare")(command)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.stdout, result.exception


def test_command_line(runs) -> None:
    quick = ("--replicates", 100, "--also", "auc")
    out, error = invoke(runs / "a", runs / "b", "--json", *quick)
    assert error is None
    found = json.loads(out)
    assert found["seeds"] == list(SEEDS)
    assert found["metrics"][0]["verdict"] == "supported"
    assert found["metrics"][0]["n_groups"] == USERS * PER_USER
    table, error = invoke(runs / "a" / "seed-1", runs / "b" / "seed-1", *quick)
    assert error is None
    assert "gauc_mean@impression" in table
    assert "no verdict" in table
    assert max(map(len, table.splitlines())) <= 80


def test_missing_folders_and_scores_are_named(runs) -> None:
    assert "no such run folder" in str(invoke(runs / "a", runs / "c")[1])
    assert "valid.parquet: no scores here" in str(
        invoke(runs / "a", runs / "b", "--split", "valid")[1]
    )
    (runs / "a" / "seed-x").mkdir()
    with pytest.raises(MetricError, match="seed-NUMBER"):
        load_system(runs / "a")


def test_gap_share() -> None:
    n = USERS * PER_USER * SIZE
    world = np.random.default_rng(0)
    truth = world.normal(size=n)
    models = {s: rows(0.8, s) for s in SEEDS}
    zeros = np.zeros(n)
    found = gap_share(models, zeros, truth, "gauc_mean@user", replicates=200)
    assert found.baseline == 0.5
    assert found.share == pytest.approx((found.model.mean - 0.5) / (found.oracle - 0.5))
    assert found.seeds.low < found.share < found.seeds.high
    assert found.users.delta == pytest.approx(found.share)
    assert found.users.low < found.share < found.users.high < 1.05
    full = gap_share({1: models[1].with_scores(truth)}, zeros, truth, "gauc_mean@user")
    assert (full.share, full.users.low, full.users.high) == pytest.approx((1.0, 1.0, 1.0))
    assert full.seeds is None
    with pytest.raises(MetricError, match="does not beat"):
        gap_share(models, truth, zeros, "gauc_mean@user")
    with pytest.raises(MetricError, match="auc is pooled"):
        gap_share(models, zeros, truth, "auc")
    other = models | {2: models[2].take(np.arange(5))}
    with pytest.raises(MetricError, match="seed 2 scored other rows"):
        gap_share(other, zeros, truth, "gauc_mean@user")
