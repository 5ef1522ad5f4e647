"""Spaces: all fit their recipes; what cannot run is refused by name before anything starts."""

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from raysys.cli.main import run
from raysys.data.mapping import LocalMapper
from raysys.data.world import WorldConfig, make_world
from raysys.errors import ConfigError
from raysys.options import flat, nested, resolve
from raysys.recipes.ranker import RankerRecipe
from raysys.recipes.registry import recipe_of
from tune_spaces import names, open_space
from tune_spaces.runner.space import Choice, Real, Space, Whole, configure


def base_of(space: Space) -> RankerRecipe:
    given = {**nested(space.defaults), "data": "D"}
    return resolve(recipe_of(space.recipe), None, (), given)


@pytest.mark.parametrize("name", names())
def test_every_space_fits_its_recipe_and_its_models(name: str) -> None:
    space = open_space(name)
    space.check(base_of(space))
    assert space.search or space.grid
    # Pure: the same again, and no file or cluster is needed to ask.
    assert open_space(name) == space
    assert Space.model_validate_json(space.model_dump_json()) == space


def test_all_combinations_of_nrms_can_be_built() -> None:
    search = open_space("nrms").search
    for width in search["model.width"].ends():
        for heads in search["model.heads"].ends():
            assert int(width) % int(heads) == 0


def test_a_name_that_does_not_exist_gives_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean nrms"):
        open_space("nrm")


def some(**changes: object) -> Space:
    base = {"recipe": "ctr/din", "metric": "gauc", "mode": "max"}
    return Space.model_validate({**base, **changes})


def test_an_unknown_key_gives_the_nearest_and_a_bad_value_its_reason() -> None:
    space = some(search={"train.learning_rate": Real(low=0.1, high=1)})
    with pytest.raises(ConfigError, match=r"unknown key train\.learning_rate"):
        space.check(base_of(space))
    with pytest.raises(ConfigError, match=r"model\.dropout: Input should be less than 1"):
        some(search={"model.dropout": Real(low=0, high=1.5)}).check(base_of(space))
    with pytest.raises(ConfigError, match=r"batch_size"):
        some(grid={"batch_size": (64, 0)}).check(base_of(space))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search": {"a": Choice(values=(1,))}, "grid": {"a": (1,)}}, "either search or grid"),
        ({"grid": {"train.seed": (1, 2)}}, "varied by seeds"),
        ({"curve": "train.lr"}, "give it numbers in grid"),
        ({"grid": {"a": (1, 2)}, "at_best": True}, "without search there is no best"),
        ({"grid": {"model.match": (True, False)}, "curve": "model.match"}, "give it numbers"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        some(**changes)


@pytest.mark.parametrize("kind", [Real, Whole])
def test_empty_ranges_are_refused(kind: type[Real] | type[Whole]) -> None:
    with pytest.raises(ValidationError, match="low < high"):
        kind(low=2, high=2)
    with pytest.raises(ValidationError, match="0 < low for log"):
        kind(low=0, high=2, log=True)


def test_what_the_user_gives_is_not_varied() -> None:
    space = some(
        search={"train.lr": Real(low=0.1, high=1), "model.dropout": Real(low=0, high=0.5)},
        grid={"batch_size": (8, 16)},
        curve="batch_size",
    )
    fixed = space.fixed({"train.lr": 0.2, "batch_size": 8})
    assert (list(fixed.search), fixed.grid, fixed.curve) == (["model.dropout"], {}, None)
    assert fixed.cells() == [{}]


def test_a_grid_at_the_best_shrinks_with_what_the_user_fixes() -> None:
    space = some(
        search={"train.lr": Real(low=0.1, high=1)}, grid={"batch_size": (8, 16)}, at_best=True
    )
    assert space.trials(5, 3) == 5 + 2 * 3
    # The best suggestion is trained with every seed all the same.
    assert space.fixed({"batch_size": 8}).trials(5, 3) == 5 + 3
    plain = space.fixed({"train.lr": 0.2})
    assert (plain.at_best, plain.trials(1, 3)) == (False, 2 * 3)


def test_cells_are_all_combinations_in_order() -> None:
    space = some(grid={"batch_size": (8, 16), "negatives": (1, 2)})
    pairs = [(cell["batch_size"], cell["negatives"]) for cell in space.cells()]
    assert pairs == [(8, 1), (8, 2), (16, 1), (16, 2)]


def test_configure_changes_the_point_and_nothing_else() -> None:
    base = base_of(some())
    config = configure(base, {"train.lr": 0.5, "model.hidden": (8,)}, seed=4)  # type: ignore[dict-item]
    before, after = flat(base.model_dump()), flat(config.model_dump())
    assert type(config) is type(base)
    assert {key for key in before if before[key] != after[key]} == {
        "train.lr", "model.hidden", "train.seed",
    }  # fmt: skip
    assert (config.train.lr, config.train.seed) == (0.5, 4)


def test_flat_and_nested_undo_each_other() -> None:
    tree = {"a": {"b": 1, "c": {"d": [2]}}, "e": None}
    assert flat(tree) == {"a.b": 1, "a.c.d": [2], "e": None}
    assert nested(flat(tree)) == tree
    with pytest.raises(ConfigError, match="plain value"):
        nested({"a": 1, "a.b": 2})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tune") / "world"
    make_world(WorldConfig(kind="food", users=60, days=20, seed=3), out, LocalMapper())
    return out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dinn"], "did you mean din"),
        (["din", "train.epoch=2"], "did you mean train.epochs"),
        (["din_history", "--samples", "3"], "nothing is left to search"),
        (["cofars", "cofars.contexts.features=[tide]"], "tide"),
        (["cofars", "cofars.preferences.attributes.fields=[{source: brandy}]"], "brandy"),
        (["din_history", "--seeds", "1", "model.history_length=5"], "raysys train does that"),
        (["din", "--resume"], "holds no sweep"),
    ],
)
def test_bad_options_are_refused_and_leave_nothing(
    arguments: list[str],
    words: str,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    folders = ["--data", str(world), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["raysys", "tune", *arguments, *folders])
    with pytest.raises(SystemExit) as ended:
        run()
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out) == (2, "")
    assert words in shown.err
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_written_into(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letters.txt").write_text("dear")
    folders = ["--data", str(world), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["raysys", "tune", "din", *folders])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letters.txt"]
