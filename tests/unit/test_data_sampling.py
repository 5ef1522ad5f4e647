"""The training loader: batches that parts share out, and negatives nobody clicked."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from data_fixtures import ITEMS, Log, log

from raysys.data.batch import Batch, Collator, Pointers, pad_rows
from raysys.data.dataset import Dataset
from raysys.data.features import FeatureConfig, fit_features
from raysys.data.prepared import Prepared, prepare
from raysys.data.sampling import ImpressionLoader
from raysys.errors import DataError

Mode = Literal["all", "sampled"]
modes = pytest.mark.parametrize("mode", ["all", "sampled"])
NAMES = [None, None, *ITEMS]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))


def opened(rows: Log, folder: Path) -> Prepared:
    return prepare(Dataset(rows.write(folder)))


def loader(data: Prepared, mode: Mode, *, seed: int = 0, **more: Any) -> ImpressionLoader:
    codec = fit_features(data, FeatureConfig()).contexts
    collator = Collator(data.histories, codec, 3)
    return ImpressionLoader(
        data, collator, batch_size=5, seed=seed, candidates=mode, negatives=2, **more
    )


def requests(batch: Batch | None) -> list[tuple[Any, ...]]:
    """Each request of a batch without its padding."""
    out = []
    for row in range(len(batch) if batch is not None else 0):
        part = batch.slice(row, row + 1)
        real, past = part.candidate_mask[0], part.history_mask[0]
        out.append(
            (
                tuple(part.candidates[0, real].tolist()),
                tuple(part.clicks[0, real].tolist()),
                tuple(part.orders[0, real].tolist()),
                tuple(part.context[0].tolist()),
                tuple(part.history_items[0, past].tolist()),
                tuple(part.history_context[0, past].flatten().tolist()),
                int(part.history_length[0]),
            )
        )
    return out


def epoch(source: ImpressionLoader, number: int, parts: int = 1) -> list[tuple[Any, ...]]:
    return [
        request
        for step in range(source.steps_per_epoch)
        for part in range(parts)
        for request in requests(source.batch(number, step, part, parts))
    ]


@modes
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_are_disjoint_and_cover_the_global_batch(
    tmp_path: Path, mode: Mode, parts: int
) -> None:
    source = loader(opened(log(3, impressions=30), tmp_path / "data"), mode)
    for step in range(source.steps_per_epoch):
        whole = requests(source.batch(1, step))
        split = [requests(source.batch(1, step, part, parts)) for part in range(parts)]
        assert sum(map(len, split)) == len(whole)
        for part in range(parts):
            assert split[part] == whole[part::parts]


@modes
def test_the_number_of_a_request_is_the_same_in_any_part(tmp_path: Path, mode: Mode) -> None:
    """And another one for each request, step, epoch and seed."""
    data = opened(log(3, impressions=30), tmp_path / "data")
    seen = []
    for seed in (0, 1):
        source: ImpressionLoader[Pointers] = ImpressionLoader(
            data, lambda pointers: pointers, batch_size=5, seed=seed, candidates=mode
        )
        for number in (0, 1):
            for step in range(source.steps_per_epoch):
                whole = source.batch(number, step)
                assert whole is not None
                assert whole.draw is not None
                for part in range(3):
                    split = source.batch(number, step, part, 3)
                    wanted = whole.draw[part::3].tolist()
                    assert ([] if split is None else split.draw.tolist()) == wanted
                seen += whole.draw.tolist()
    assert len(set(seen)) == len(seen) > 40


@modes
def test_an_epoch_holds_each_unit_once_and_depends_on_seed_and_number(
    tmp_path: Path, mode: Mode
) -> None:
    rows = log(3, impressions=30)
    data = opened(rows, tmp_path / "data")
    source = loader(data, mode)
    train = [i for i in rows.impressions if i["split"] == "train"]
    if mode == "all":
        units = [tuple(i["candidates"]) for i in train]
    else:
        units = [
            item for i in train if len(i["clicks"]) < len(i["candidates"]) for item in i["clicks"]
        ]
    assert source.samples == len(units)
    assert source.steps_per_epoch == -(-len(units) // 5)
    seen = epoch(source, 0)
    got = [tuple(NAMES[i] for i in r[0]) if mode == "all" else NAMES[r[0][0]] for r in seen]
    assert sorted(got) == sorted(units)
    assert epoch(loader(data, mode), 0) == seen  # another process, the same batches
    assert epoch(source, 1) != seen
    assert epoch(loader(data, mode, seed=1), 0) != seen
    # Any batch may be asked for first: a resumed run begins in the middle.
    last = source.steps_per_epoch - 1
    again = loader(data, mode)
    assert requests(again.batch(4, last)) == requests(source.batch(4, last))
    assert again.batch(0, source.steps_per_epoch) is None


@pytest.mark.parametrize("seed", range(3))
def test_sampled_negatives_are_shown_and_never_clicked(tmp_path: Path, seed: int) -> None:
    rows = log(seed, impressions=30)
    data = opened(rows, tmp_path / "data")
    source = loader(data, "sampled")
    shown = [i for i in rows.impressions if i["split"] == "train"]
    drawn = set()
    for number in range(20):
        for candidates, clicks, *_ in epoch(source, number):
            assert clicks == (1.0,) + (0.0,) * (len(candidates) - 1)
            click, *negatives = [NAMES[i] for i in candidates]
            assert len(set(negatives)) == len(negatives)
            homes = [
                i for i in shown
                if click in i["clicks"]
                and set(negatives) <= set(i["candidates"]) - set(i["clicks"])
                and len(negatives) == min(2, len(i["candidates"]) - len(i["clicks"]))
            ]  # fmt: skip
            assert homes
            drawn.update((click, negative) for negative in negatives)
    every = {
        (click, other)
        for i in shown
        for click in i["clicks"]
        for other in set(i["candidates"]) - set(i["clicks"])
    }
    assert drawn == every  # each of them comes up in time


def test_a_batch_is_its_rows(tmp_path: Path) -> None:
    rows = log(5, impressions=30)
    data = opened(rows, tmp_path / "data")
    source = loader(data, "all")
    codec = source.collator.codec
    expected = []
    for row in rows.impressions:
        if row["split"] != "train":
            continue
        past = [
            e for e in rows.events
            if e["user_id"] == row["user_id"] and e["behaviour"] in ("click", "order")
            and e["ts"] < row["ts"]
        ]  # fmt: skip
        newest = past[::-1][:3]
        expected.append(
            (
                tuple(NAMES.index(i) for i in row["candidates"]),
                tuple(float(i in row["clicks"]) for i in row["candidates"]),
                tuple(float(i in row["orders"]) for i in row["candidates"]),
                tuple(codec.encode_dicts([row["context"]])[0].tolist()),
                tuple(NAMES.index(e["item_id"]) if e["item_id"] in NAMES else 1 for e in newest),
                tuple(codec.encode_dicts([e["context"] for e in newest]).flatten().tolist()),
                len(past),
            )
        )
    assert sorted(epoch(source, 0)) == sorted(expected)


def test_the_newest_impressions_are_kept(tmp_path: Path) -> None:
    rows = log(6, impressions=40)
    source = loader(opened(rows, tmp_path / "data"), "all", split="valid", limit=4)
    kept = [
        i for i in rows.impressions if i["split"] == "valid"
    ]  # fmt: skip
    newest = sorted((i["ts"] for i in kept), reverse=True)[:4]
    lists = {tuple(i["candidates"]) for i in kept if i["ts"] >= newest[-1]}
    seen = {tuple(NAMES[i] for i in r[0]) for r in epoch(source, 0)}
    assert len(seen) == 4
    assert seen <= lists


@pytest.mark.parametrize("clicked", [False, True])
@modes
def test_constant_labels_are_refused(tmp_path: Path, mode: Mode, clicked: bool) -> None:
    rows = log(7)
    for row in rows.impressions:
        row["clicks"], row["orders"] = row["candidates"] if clicked else [], []
    with pytest.raises(DataError, match=r"split train has \d+ candidates, .* constant labels"):
        loader(opened(rows, tmp_path / "data"), mode)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    rows = log(7)
    for row in rows.impressions:
        row["split"] = "test"
    with pytest.raises(DataError, match=r"split valid has 0 candidates"):
        loader(opened(rows, tmp_path / "data"), "all", split="valid")


def test_padded_rows() -> None:
    got = pad_rows(np.array([1, 2, 3]), np.array([2, 0, 1]), fill=9)
    assert got.tolist() == [[1, 2], [9, 9], [3, 9]]
    assert pad_rows(np.array([]), np.array([], np.int64)).shape == (0, 1)


def test_batches_are_cut_and_moved_whole(tmp_path: Path) -> None:
    whole = loader(opened(log(3), tmp_path / "data"), "all").batch(0, 0)
    assert whole is not None
    halves = [whole.slice(0, 2), whole.slice(2, len(whole))]
    assert requests(halves[0]) + requests(halves[1]) == requests(whole)
    assert whole.to("meta").candidates.device == torch.device("meta")
