"""The fair test of the scene vector: its arms, its slices, and which words come out."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from larr_runs import TINY, small_city

from bench import larr_fair
from bench.fair import study as study_module
from bench.fair.slices import NEW_ITEMS, RARE_OR_UNSEEN, UNSEEN_VALUE, scene_slices
from bench.larr_arms import arms, claims
from bench.larr_fair import stages, verdict
from raysys.data.dataset import Dataset
from raysys.data.prepared import prepare
from raysys.errors import ConfigError
from raysys.metrics import ScoredRows
from raysys.options import load_yaml, merge, parse_overrides
from raysys.recipes.larr import LarrRecipe

BASE = load_yaml(Path("raysys/configs/ctr/larr-small.yaml"))


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("larr-fair") / "city"
    small_city(out)
    return out


def test_every_arm_is_a_valid_recipe_and_differs_in_what_it_is_named_for() -> None:
    variants = {"no-cpt": "dir:A", "no-cl": "dir:B"}
    found = arms(BASE, "dir:E", variants, 300, "last", "dir:S")
    assert {len(arm.tries) for arm in found if arm.tuned_as is None} == {4}
    tuned = {arm.name for arm in found if arm.tuned_as is None}
    configs: dict[str, Any] = {}
    for arm in found:
        assert arm.tuned_as is None or arm.tuned_as in tuned
        of = next(other for other in found if other.name == (arm.tuned_as or arm.name))
        for point in of.tries:
            configs[arm.name] = arm.config(BASE, point, 0, {"data": "D"})
    # Whatever it was tuned to, no arm is another one under a second name.
    told = [config.model_dump_json() for config in configs.values()]
    assert len(set(told)) == len(told)
    larr = {name: c for name, c in configs.items() if isinstance(c, LarrRecipe)}
    backbones = {name: config.scene_encoder.backbone for name, config in larr.items()}
    assert backbones.pop("larr-no-cpt") == "dir:A" and backbones.pop("larr-no-cl") == "dir:B"
    assert backbones.pop("larr-unfrozen") == "dir:S"
    assert [name for name, config in larr.items() if not config.larr.frozen] == ["larr-unfrozen"]
    assert backbones.pop("off-the-shelf") == backbones.pop("single-pass") == "wheel:minilm"
    assert set(backbones.values()) == {"dir:E"}
    assert {config.larr.placebo for config in larr.values()} == {
        None, "random_vectors", "permuted_texts", "shuffled_requests",
    }  # fmt: skip
    assert configs["larr-eta-0"].larr.alignment.weight == 0
    assert configs["single-pass"].larr.single_pass
    assert configs["single-pass"].larr.features == configs["larr"].larr.features
    # Item texts are known to all of them or to none.
    assert {config.features.vectors for config in configs.values()} == {("text",)}
    assert {"no-scene", "dcnv2", "din", "sim", "twin"} == set(configs) - set(larr)
    assert configs["no-scene"].features.contexts == ()
    assert configs["sim-m"].model.retriever == configs["sim"].model.retriever
    off = {arm.name for arm in arms(BASE, "wheel:minilm", {}, 300, "mean")}
    assert "off-the-shelf" not in off  # it is LARR's own encoder there
    named = {arm.name for arm in found if arm.named}
    assert {claim.b for claim in claims(variants, ("auc", "gauc_mean@user"))} <= named


@pytest.mark.slow
def test_slices_are_those_of_a_scan(city: Path) -> None:
    data = prepare(Dataset(city))
    rows = data.dataset.table("impressions").to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    asked = [row for row in rows if row["split"] == "test"]
    names = ("weather", "day")
    met = {name: Counter(row["context"][name] for row in train) for name in names}
    shown = {item for row in train for item in row["candidates"]}
    stop = min(row["ts"] for row in rows if row["split"] != "train")
    past = set()
    for event in data.dataset.table("events").to_pylist():
        if event["ts"] < stop and event["behaviour"] in data.dataset.manifest.history_behaviours:
            past.add(event["user_id"])
            shown.add(event["item_id"])
    owner = [row for row in asked for _ in row["candidates"]]
    items = [item for row in asked for item in row["candidates"]]
    found = scene_slices(
        data,
        ScoredRows.of(
            impression_id=[row["impression_id"] for row in owner],
            user_id=[row["user_id"] for row in owner],
            item_id=items,
            score=np.zeros(len(items)),
            click=[int(i in row["clicks"]) for i, row in zip(items, owner, strict=True)],
        ),
        names,
        rare=20,
    )
    least = np.array([min(met[name][row["context"][name]] for name in names) for row in owner])
    assert np.array_equal(found[UNSEEN_VALUE], least == 0) and found[UNSEEN_VALUE].any()
    assert np.array_equal(found[RARE_OR_UNSEEN], least < 20)
    assert np.array_equal(found["scene frequent"], least >= 20)
    fresh = np.array([item not in shown for item in items])
    assert not (found.get(NEW_ITEMS, np.zeros(len(items), bool)) & ~fresh).any()
    assert np.array_equal(
        found.get("cold users", np.zeros(len(items), bool)),
        np.array([row["user_id"] not in past for row in owner]),
    )


def found_with(**words: str) -> dict[str, Any]:
    """Claims that are all shown, but for those that are given."""
    every = ("no-scene", "din", "dcnv2", "single-pass", "larr-random", "larr-no-cpt")
    none = "non-inferiority not shown"
    asked = [(f"larr better than {o}", words.get(o.replace("-", "_"), "supported")) for o in every]
    asked += [
        (f"{other} not worse than larr", words.get(f"as_{other.replace('-', '_')}", none))
        for other in every[-2:]
    ]
    return {
        "claims": [
            {"claim": f"{claim} in {metric}", "verdict": verdict, "reason": ""}
            for claim, verdict in asked
            for metric in ("auc", "gauc_mean@user")
        ],
        "leak_tests": {"overlap": {"passed": None}, "candidate_permutation": {"passed": True}},
        "gain_where_text_should_help": {"at_least_overall": True},
        "planted": False,
        "headline": METRIC,
        "baselines": {"repeat": {METRIC: 0.6}, "gbdt_pointwise": {METRIC: 0.7}},
        "larr_minus": {
            "repeat": {METRIC: {"delta": 0.05, "users": [0.04, 0.06]}},
            "gbdt_pointwise": {METRIC: {"delta": -0.01, "users": [-0.02, 0.01]}},
        },
        "beyond_window": 0.0,
        "window": 500,
    }


METRIC = "gauc_mean@user"
BESIDE = (
    f"{METRIC} is neither above nor below gbdt_pointwise (-0.0100 [-0.0200, +0.0100]) and above "
    "repeat (+0.0500 [+0.0400, +0.0600]); "
)


def words_of(result: dict[str, Any]) -> str:
    """The verdict behind what it says of the baselines."""
    said = verdict(result)
    assert said.startswith(BESIDE)
    return said.removeprefix(BESIDE)


def test_the_words_are_those_of_the_specification() -> None:
    none = "no difference shown"
    assert words_of({"data": found_with()}) == "supported"
    random = words_of({"data": found_with(larr_random=none, dcnv2=none)})
    assert random == "not supported: better than a random vector per value is not shown"
    alike = found_with(larr_random=none, as_larr_random="not inferior")
    assert words_of({"data": alike}) == "refuted: a random vector per value does as well"
    for control in ("dcnv2", "single_pass"):
        words = words_of({"data": found_with(**{control: none})})
        assert words == "scene helps, not shown that text does"
    assert words_of({"data": found_with(dcnv2=none, no_scene=none)}) == "not supported"
    assert words_of({"data": found_with(din="no verdict")}) == (
        "no verdict: not to be judged here is that larr better than din in auc (too few seeds)"
    )
    flat = {**found_with(), "gain_where_text_should_help": {"at_least_overall": False}}
    assert words_of({"data": flat}).startswith("not supported: the gain is not larger")
    leaking = {**found_with(), "leak_tests": {"overlap": {"passed": False}}}
    assert verdict({"data": leaking}) == "not to be trusted: overlap failed"
    both = {"data": found_with(), "placebo": found_with()}
    assert words_of(both) == "not supported: LARR also wins where words mean nothing"
    both["placebo"] = found_with(larr_random=none)
    assert words_of(both) == "supported"
    short = {**found_with(), "beyond_window": 0.25}
    assert words_of({"data": short}) == (
        "supported; 25% of the requests have more events than the 500 that searching arms saw"
    )
    planted = {**found_with(), "planted": True}
    assert words_of({"data": planted}) == (
        "supported on planted data, which test the code and not the claim"
    )


def test_stages_are_judged_only_where_encoders_without_them_are_given() -> None:
    none = "no difference shown"
    result = {"data": found_with(larr_no_cpt=none)}
    assert stages(result, "wheel:minilm", {}) == "not tested, the encoder is off the shelf"
    assert stages(result, "dir:E", {}) == "not tested, no encoder without them was given"
    for words, expected in (
        ({}, "supported"),
        ({"larr_no_cpt": none}, "no-cpt: no difference shown"),
        ({"larr_no_cpt": "no verdict"}, "no-cpt: no verdict"),
        (
            {"larr_no_cpt": none, "as_larr_no_cpt": "not inferior"},
            "no-cpt: unsupported, as good without",
        ),
    ):
        assert stages({"data": found_with(**words)}, "dir:E", {"no-cpt": "dir:A"}) == expected
    planted = {**found_with(), "planted": True}
    said = stages({"data": planted}, "dir:E", {"no-cpt": "dir:A"})
    assert said == "supported on planted data"
    leaking = {**found_with(), "leak_tests": {"overlap": {"passed": False}}}
    said = stages({"data": leaking}, "dir:E", {"no-cpt": "dir:A"})
    assert said == "not to be trusted: overlap failed"


@pytest.mark.slow
def test_one_command_gives_figures_words_and_a_page_and_resumes(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def run_tasks(
        fn: Callable[[Any], Any], tasks: Sequence[Any], *, label: str, num_cpus: float
    ) -> Iterator[Any]:
        asked.append(len(tasks))
        return map(fn, tasks)

    def few(*given: Any) -> list[Any]:
        kept = {"no-scene", "dcnv2", "din", "larr", "single-pass", "larr-random", "larr-permuted",
                "larr-shuffled"}  # fmt: skip
        chosen = [arm for arm in arms(*given) if arm.name in kept]
        return [arm.model_copy(update={"tries": arm.tries[:1]}) for arm in chosen]

    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(study_module, "run_tasks", run_tasks)
    monkeypatch.setattr(study_module, "ensure_ray", lambda env: True)
    monkeypatch.setattr(larr_fair, "arms", few)
    small = merge(BASE, parse_overrides([*TINY, "train.epochs=1"]))
    monkeypatch.setattr(larr_fair, "load_yaml", lambda path: small)
    options = dict(
        data=str(city), out=str(tmp_path / "out"), seeds=1, other_seeds=1, rows=2000, users=20,
        rare=20, window=20, replicates=50,
    )  # fmt: skip
    result = larr_fair.run(**options)
    # Five tuned arms, then one seed of each of eight; a leak test trains five times more.
    assert asked == [5, 8, *[1] * 5]
    found = result["data"]
    assert found["slices"][UNSEEN_VALUE]["rows"] > 0
    assert found["cost"]["llm_calls_per_1000_requests"]["online"] == 0
    assert found["cost"]["llm_calls_per_1000_requests"]["naive"] > 4000
    assert {row["verdict"] for row in found["claims"]} == {"no verdict"}
    assert result["stages_1_and_2"].startswith("not tested")
    page = larr_fair.markdown(result)
    assert "No published figures compared" in page and "| larr | 1 |" in page
    assert (tmp_path / "out" / "data" / "differences.png").is_file()
    again = larr_fair.run(**options)
    assert asked == [5, 8, *[1] * 5]
    assert again["data"]["claims"] == found["claims"]


def test_folds_need_an_encoder_each(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one encoder for all: .*\{fold\}"):
        larr_fair.run("A,B", out=str(tmp_path / "study"), encoder="dir:one")
    assert not (tmp_path / "study").exists()
