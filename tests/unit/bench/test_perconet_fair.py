"""The fair test of PerCoNet: its arms, and which words come out."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import newspaper as paper
import pytest

from bench import perconet_fair
from bench.fair import study as study_module
from bench.fair.slices import driven_by
from bench.perconet_arms import arms, claims, weights_of
from bench.perconet_fair import METRICS, verdict
from raysys.data.dataset import Dataset
from raysys.data.prepared import Prepared, prepare
from raysys.errors import ConfigError
from raysys.options import load_yaml, merge, parse_overrides

BASE = load_yaml(Path("raysys/configs/news/perconet-small.yaml"))
WIDTH = 384


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(Dataset(paper.write(tmp_path_factory.mktemp("fair") / "data")))


def test_arms_are_tried_equally_often_and_no_two_are_the_same(data: Prepared) -> None:
    found = arms(BASE, data, WIDTH)
    # Placebos too: what they are held against must not be better tuned.
    assert all(arm.tries == found[0].tries for arm in found)
    assert len(found[0].tries) == 4
    configs = {arm.name: arm.config(BASE, arm.tries[0], 0, {"data": "D"}) for arm in found}
    told = [config.model_dump_json() for config in configs.values()]
    assert len(set(told)) == len(told)
    assert [name for name in configs if name[0] in "PXV"] == [
        "P0", "P1", "P2", "P3", "X1", "X2", "V0", "V1", "V2", "V4", "V5", "V6",
    ]  # fmt: skip
    # Rivals read the same texts, and no ids of items.
    rivals = {name: c for name, c in configs.items() if c.recipe != "news/perconet"}
    assert len(rivals) == 6
    for name, config in rivals.items():
        fields = [field.source for field in config.features.items]
        assert fields == (["category:1"] if name in ("naml", "lstur") else [])
        assert config.features.vectors == (
            ("title",) if name == "nrms-title" else ("title", "abstract")
        )
    assert rivals["kred"].model.entity.tuned == configs["P3"].model.persona.tuned
    assert rivals["kred"].model.entity.buckets == configs["P3"].model.persona.buckets


def test_news_without_abstracts_leave_the_second_claim_out(tmp_path: Path) -> None:
    bare = prepare(Dataset(paper.write(tmp_path / "bare", abstracts=False)))
    found = arms(BASE, bare, WIDTH)
    configs = {arm.name: arm.config(BASE, arm.tries[0], 0, {"data": "D"}) for arm in found}
    assert list(configs) == [
        "P0", "P1", "P2", "P3", "X1", "X2", "nrms", "naml", "naml-no-category", "lstur", "kred",
    ]  # fmt: skip
    assert {config.features.vectors for config in configs.values()} == {("title",)}


def test_arms_of_perconet_have_as_many_weights(data: Prepared) -> None:
    found = [arm for arm in arms(BASE, data, WIDTH) if arm.recipe == "news/perconet"]
    counts = {}
    for arm in found:
        config = arm.config(BASE, {}, 0, {"data": "D"})
        counts[arm.name] = weights_of(config.model.model_dump(), data, WIDTH)
    assert len(counts) == 12
    for name, count in counts.items():
        assert abs(count / counts["P3"] - 1) <= 0.05, (name, counts)
    assert counts["P3"] < 1_000_000
    # What only the contrast reads does not act: V5 is a model of titles.
    plain = arms(BASE, data, WIDTH)[6].config(BASE, {}, 0, {"data": "D"}).model.model_dump()
    assert weights_of(plain, data, WIDTH) == counts["V0"] == counts["V5"]


def test_claims_are_those_of_the_paper() -> None:
    asked = claims(METRICS, cross=True)
    better = {(c.a, c.b, c.family) for c in asked if c.kind == "better"}
    assert better == {
        ("P2", "P0", "C1-strong"),
        ("P3", "P1", "C1-weak"), ("P3", "X1", "C1-weak"), ("P3", "X2", "C1-weak"),
        ("V4", "V2", "C2"), ("V4", "P3", "C2"), ("V4", "V6", "C2"),
    }  # fmt: skip
    assert {c.metric for c in asked} == set(METRICS)
    assert not any("V" in c.a + c.b for c in claims(METRICS, cross=False))


def found_with(**words: str) -> dict[str, Any]:
    """A finished study whose claims all hold, but for `a_b` given another word."""
    rows = []
    for claim in claims(METRICS, cross=True):
        name = f"{claim.a}_{claim.b}"
        word = "not shown" if claim.kind == "not worse" else "supported"
        key = name if claim.kind == "better" else f"as_{name}"
        rows.append(
            {
                "claim": f"{claim.a} {claim.kind} than {claim.b} in {claim.metric}",
                "verdict": words.get(key, word),
                "reason": "",
            }
        )
    row = {METRICS[0]: {"delta": 0.01, "users": (0.005, 0.015), "seeds": None}}
    return {
        "headline": METRICS[0],
        "planted": False,
        "claims": rows,
        "arms": {name: {} for name in ("P0", "P1", "P2", "P3", "X1", "X2", "V2", "V4", "V6")},
        "baselines": {"gbdt_pointwise": {METRICS[0]: 0.6}, "popularity": {METRICS[0]: 0.5}},
        "P3_minus": {"gbdt_pointwise": row, "popularity": row},
        "leak_tests": {"overlap": {"passed": True}},
        "faithfulness": {
            "candidates": 10, "skipped": 1, "effect": 0.2, "users": [0.1, 0.3], "holds": True,
        },
    }  # fmt: skip


def test_the_words_follow_from_the_claims() -> None:
    words = verdict({"data": found_with()})
    assert {words[name] for name in ("C1-strong", "C1-weak", "C2")} == {"supported"}
    assert words["explanations"].startswith("supported (+0.2000")
    assert words["beside"].startswith("gauc_mean@impression is above gbdt_pointwise")
    none = "no difference shown"
    lost = verdict({"data": found_with(P2_P0=none, P3_X1=none)})
    assert lost["C1-strong"] == "not supported: not shown is P2 over P0"
    assert lost["C1-weak"] == "not supported: not shown is P3 over X1"
    as_good = verdict({"data": found_with(P3_X1=none, as_X1_P3="not inferior")})
    assert as_good["C1-weak"].endswith("shuffled personas do as well: extra capacity")
    regular = verdict({"data": found_with(V4_V6=none, as_V6_V4="not inferior")})
    assert regular["C2"] == (
        "contrastive regularisation helps, the second view is not shown to matter"
    )
    both = {"data": found_with(), "placebo": found_with()}
    assert verdict(both)["C1-strong"].startswith("not supported: it also wins")
    assert verdict(both)["C2"] == "supported"
    lost_there = dict.fromkeys(("P2_P0", "P3_P1", "P3_X1", "P3_X2"), none)
    both["placebo"] = found_with(**lost_there)
    assert verdict(both)["C1-weak"] == "supported"
    planted = verdict({"data": {**found_with(), "planted": True}})
    assert planted["C2"].startswith("supported on planted data")
    assert planted["planted readers"] == (
        "over the latent vector the persona is not shown to win for entity-driven readers and is "
        "not shown to win for topic-driven ones"
    )
    driven = found_with()
    for claim in claims(METRICS, cross=True, planted=True):
        if claim.family == "planted":
            won = claim.a == "P3" and claim.slice == driven_by("entity")
            told = f"{claim.a} better than P0 in {claim.metric} on {claim.slice}"
            word = "supported" if won else "no difference shown"
            driven["claims"].append({"claim": told, "verdict": word, "reason": ""})
    driven["planted"] = True
    assert verdict({"data": driven})["planted readers"] == (
        "over the latent vector the persona wins for entity-driven readers and is not shown to "
        "win for topic-driven ones"
    )
    for a, kind in (("X1", "mixed"), ("P3", "topic")):
        other = deepcopy(driven)
        for row in other["claims"]:
            if row["claim"] == f"{a} better than P0 in {METRICS[0]} on {driven_by(kind)}":
                row["verdict"] = "supported"
        told = verdict({"data": other})["planted readers"]
        assert told.startswith("not to be trusted"), (a, kind)
    open_ = deepcopy(driven)
    for row in open_["claims"]:
        if driven_by("entity") in row["claim"]:
            row["verdict"] = "no verdict"
    assert verdict({"data": open_})["planted readers"] == "no verdict"
    leaking = {**found_with(), "leak_tests": {"overlap": {"passed": False}}}
    assert verdict({"data": leaking}) == {"all": "not to be trusted: overlap failed"}
    untold = {**found_with(), "faithfulness": {"candidates": 0, "skipped": 3}}
    assert verdict({"data": untold})["explanations"].startswith("not testable here")


def test_arms_that_read_words_cannot_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        perconet_fair, "load_yaml", lambda path: merge(BASE, {"model": {"encoder": "mhsa"}})
    )
    with pytest.raises(ConfigError, match="encoder=mhsa: the rivals read frozen vectors"):
        perconet_fair.run(data="D")


@pytest.mark.slow
def test_one_command_gives_figures_words_and_a_page_and_resumes(
    data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def run_tasks(
        fn: Callable[[Any], Any], tasks: Sequence[Any], *, label: str, num_cpus: float
    ) -> Iterator[Any]:
        asked.append(len(tasks))
        return map(fn, tasks)

    def few(*given: Any) -> list[Any]:
        return [arm.model_copy(update={"tries": arm.tries[:1]}) for arm in arms(*given)]

    monkeypatch.setattr(study_module, "run_tasks", run_tasks)
    monkeypatch.setattr(study_module, "ensure_ray", lambda env: True)
    monkeypatch.setattr(perconet_fair, "arms", few)
    tiny = [one for one in paper.TINY if not one.startswith("train.epochs")]
    small = merge(BASE, parse_overrides([*tiny, "train.epochs=1"]))
    monkeypatch.setattr(perconet_fair, "load_yaml", lambda path: small)
    options = dict(
        data=str(data.dataset.path), out=str(tmp_path / "out"), seeds=1, other_seeds=1, rows=2000,
        users=20, replicates=50,
    )  # fmt: skip
    result = perconet_fair.run(**options)
    assert asked == [18, 18, *[1] * 5]
    found = result["data"]
    assert set(METRICS) <= set(found["arms"]["P3"])
    assert found["faithfulness"]["candidates"] > 0
    cost = found["flops_per_click"]
    assert cost.keys() == found["arms"].keys()
    # The contrast compares all news of a batch with each other, the placebo does what P3 does.
    assert cost["V4"] > cost["P3"] > 0
    assert cost["X1"] == pytest.approx(cost["P3"], rel=0.05)
    assert "embedding" in found["baselines"] and "entity_overlap" in found["baselines"]
    assert "candidate without entities" in found["slices"]
    assert {row["verdict"] for row in found["claims"]} == {"no verdict"}
    page = perconet_fair.markdown(result)
    assert "No published figures compared" in page and "| P3 | 1 |" in page
    assert (tmp_path / "out" / "data" / "differences.png").is_file()
    again = perconet_fair.run(**options)
    assert asked == [18, 18, *[1] * 5]
    assert again["data"]["claims"] == found["claims"]
