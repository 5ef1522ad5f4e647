"""The fair test of HomoDistil: its arms, equal cost, resumption, and which words come out."""

from pathlib import Path
from typing import Any

import pytest
from distil_toys import root, texts

from bench import homodistil_fair
from bench.homodistil_arms import MAIN, Place, arms, encoder_grid, language_grid
from bench.homodistil_fair import markdown, verdict
from raysys.data.loaders import import_dataset
from raysys.errors import ConfigError, DataError
from raysys.options import load_yaml, merge, nested
from raysys.recipes.homodistil import HomoDistilRecipe

__all__ = ["root"]  # the fixture


def test_every_arm_is_a_valid_recipe_and_none_is_another() -> None:
    base = load_yaml(Path("raysys/configs/llm/homodistil-lm.yaml"))
    told = {
        name: HomoDistilRecipe.model_validate(
            merge(base, nested({"data": "C", **arm.options}))
        ).model_dump_json()
        for name, arm in arms(10).items()
    }
    assert list(told) == [f"A{n}" for n in range(1, 13)]
    # A12 differs from A4 by the length of its training alone.
    assert told["A12"] == told["A4"] and len(set(told.values())) == 11
    assert set(language_grid()[MAIN]) == set(told)
    assert {p.ratio for p in language_grid() if p.budget == 1} == {0.75, 0.5, 1 / 3}
    assert {p.budget for p in language_grid() if p.ratio == 1 / 3} == {0.3, 1.0, 3.0}
    assert all({"A4", "A6", "A12"} <= set(n) for n in (language_grid() | encoder_grid()).values())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fair")
    (folder / "src").mkdir()
    some = texts(160)
    parts = (("train", some[:120]), ("valid", some[120:140]), ("test", some[140:]))
    for part, own in parts:
        (folder / "src" / f"{part}.txt").write_text("\n\n".join(own))
    import_dataset("corpus", folder / "src", folder / "data", {"unit": "paragraph"})
    return folder / "data"


@pytest.mark.slow
def test_a_study_of_a_language_model(
    root: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"row_tokens": 16, "batch_rows": 4, "every": 2, "held_rows": 8}
    base = merge(load_yaml(Path("raysys/configs/llm/homodistil-lm.yaml")), small)
    base["train"]["warmup_steps"] = 1
    monkeypatch.setattr(homodistil_fair, "load_yaml", lambda path: base)
    grid = {MAIN: ("A4", "A6", "A8", "A12"), Place(0.5, 1.0): ("A4", "A6")}
    monkeypatch.setattr(homodistil_fair, "language_grid", lambda: grid)
    options: dict[str, Any] = dict(
        data=str(corpus), teacher=f"dir:{root / 'llama'}", out=str(tmp_path / "study"), seeds=2,
        other_seeds=2, unit_tokens=1_600, rates=(1e-3,), calibration=2,
    )  # fmt: skip
    found = homodistil_fair.run(**options)
    main = found["places"][MAIN.name]
    assert set(main["arms"]) == set(grid[MAIN])
    # As long as it costs as much, to one step.
    assert main["arms"]["A12"]["flops_ratio"] == pytest.approx(1, abs=0.03)
    assert main["arms"]["A12"]["tokens"] > main["arms"]["A4"]["tokens"] == main["tokens"] == 1600
    assert main["arms"]["A4"]["flops_ratio"] < 1 > main["arms"]["A8"]["flops_ratio"]
    assert found["rates"]["A12"] == found["rates"]["A4"]
    assert "no verdict" in found["verdict"]["path"]
    assert "A6 better than A12" in markdown(found)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "study").rglob("cell.json")}
    assert homodistil_fair.run(**options) == found
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "study").rglob("cell.json")}
    with pytest.raises(ConfigError, match="made with other options"):
        homodistil_fair.run(**{**options, "calibration": 3})
    with pytest.raises(ConfigError, match=r"no r9; there are r0\.33-b1"):
        homodistil_fair.run(**{**options, "places": ("r9",)})
    with pytest.raises(DataError, match="valid and test are needed"):
        homodistil_fair.run(**{**options, "data": str(root / "data")})


@pytest.mark.slow
def test_a_study_of_a_sentence_encoder(
    root: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_yaml(Path("raysys/configs/llm/homodistil-minilm.yaml"))
    base |= {"row_tokens": 16, "batch_rows": 16, "together": 8, "every": 2, "held_rows": 16}
    base["train"]["warmup_steps"] = 1
    monkeypatch.setattr(homodistil_fair, "load_yaml", lambda path: base)
    grid = {Place(0.5, 1.0): ("A4", "A6", "A12")}
    monkeypatch.setattr(homodistil_fair, "encoder_grid", lambda: grid)
    found = homodistil_fair.run(
        str(corpus), teacher=f"dir:{root / 'encoder'}", out=str(tmp_path / "study"), seeds=2,
        unit_tokens=3_000, rates=(1e-3,), calibration=2,
    )  # fmt: skip
    (place,) = found["places"].values()
    assert found["metric"] == "spearman" and found["teacher_probes"]["spearman"] == 1
    assert 0.2 < place["arms"]["A6"]["spearman"]["mean"] < 1
    assert list(place["arms"]) == ["A4", "A6", "A12"]
    assert found["rates_at_an_end"] and found["verdict"]["path"].startswith("no verdict")


def claims(**words: str) -> dict[str, Any]:
    return {
        f"A6 better than {name}": {
            "verdict": word, "difference": 0.1, "low": 0.01 if word == "supported" else -0.1,
            "high": -0.01 if word == "worse" else 0.2, "seeds": 3,
        }
        for name, word in words.items()
    }  # fmt: skip


@pytest.mark.parametrize(
    ("main", "half", "path"),
    [
        (("supported", "supported"), ("supported", "supported"), "supported at r0.33-b1, r0.50-b1"),
        (("supported", "supported"), ("supported", "worse"), "explained by compute"),
        (("supported", "worse"), ("no difference shown", "worse"), "not supported"),
    ],
)
def test_the_words(main: tuple[str, str], half: tuple[str, str], path: str) -> None:
    places = {
        place.name: {
            "ratio": place.ratio, "budget": 1.0, "seeds": 5,
            "claims": claims(A4=told[0], A12=told[1], A7="no difference shown", A8="supported"),
        }
        for place, told in ((MAIN, main), (Place(0.5, 1.0), half), (Place(0.75, 1.0), ("x", "x")))
    }  # fmt: skip
    words = verdict({"places": places})
    assert words["path"] == path
    assert words["ranking"] == "the path matters, not the ranking (3 seeds)"
    assert words["distillation"] == "helps (3 seeds)" and "budget" not in words
    places[MAIN.name]["claims"] |= claims(A7="worse")
    assert verdict({"places": places})["ranking"] == "hurts (3 seeds)"
    # One compression, a mild one, or none at full budget is no verdict.
    for names, told in (
        ((MAIN.name,), "r0.33-b1 was run"),
        (("r0.75-b1",), "r0.75-b1 was run; there: not supported"),
        ((), "nothing was run"),
    ):
        few = {name: places[name] for name in names}
        found = verdict({"places": few})["path"]
        assert found.startswith("no verdict") and told in found
    for place in places.values():
        place["seeds"] = 3
    assert "fewer than 5 seeds" in verdict({"places": places})["path"]
