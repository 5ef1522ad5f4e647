"""Lists in a folder: what is damaged, missing or of other lists is named by its file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cofars_planted import Planted, histories

from raysys.cofars.lists import Lists
from raysys.cofars.stored import load_lists, save_lists
from raysys.data.columns import ColumnFolder
from raysys.errors import ArtifactError

DATA = Planted.of(histories([20, 0, 30], 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lists = Lists.build(DATA.selector(), DATA.table, DATA.index, np.arange(3), "one", nightly=True)
    save_lists(tmp_path, lists)
    assert load_lists(tmp_path, "one").bits.tolist() == lists.bits.tolist()
    return tmp_path


def text(name: str, words: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(words)


def cut(name: str) -> Callable[[Path], object]:
    """Fewer rows than the other files have."""

    def change(folder: Path) -> None:
        columns = ColumnFolder(folder)
        values = np.array(columns.read(name))
        (folder / f"{name}.arrow").unlink()
        columns.write(name, values[:2])

    return change


COLUMNS = ("key", "entry_begin", "entry", "move_begin", "moves", "bits")
NIGHTLY = ("nightly_end", "nightly_prototypes", "nightly_similarity")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (text("lists.json", "x"), r"lists\.json: damaged"),
        (text("lists.json", '{"model": "one", "prototypes": "x"}'), r"lists\.json: damaged"),
        (text("lists.json", '{"model": "one", "prototypes": 0, "nightly": false}'), "damaged"),
        (cut("bits"), rf"bits\.arrow: 2 × 1 values, where .* have {len(DATA.index.key)} × 1;"),
        *((cut(name), rf"{name}\.arrow: 2 values, where") for name in COLUMNS[:3]),
        (cut("moves"), r"moves\.arrow: 2 × 3 values, where"),
        (cut("move_begin"), r"move_begin\.arrow: 2 values, where the other files have 4;"),
        (cut("nightly_end"), r"nightly_end\.arrow: 2 values, where the other files have 3;"),
        (cut("nightly_prototypes"), r"nightly_prototypes\.arrow: 2 × 128 values, where"),
        (cut("nightly_similarity"), r"nightly_similarity\.arrow: 2 × 8 values, where"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    folder: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(folder)
    with pytest.raises(ArtifactError, match=words) as caught:
        load_lists(folder, "one")
    assert str(caught.value).endswith("build them with: raysys build cofars-lists RUN --data DIR")


@pytest.mark.parametrize("name", ["pair_begin", *COLUMNS, *NIGHTLY])
@pytest.mark.parametrize("kept", [None, 100])
def test_a_file_that_is_missing_or_broken_off_is_named(
    folder: Path, name: str, kept: int | None
) -> None:
    path = folder / f"{name}.arrow"
    whole = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(whole[:kept])
    with pytest.raises(ArtifactError, match=rf"{name}\.arrow: missing or damaged; build them"):
        load_lists(folder, "one")
