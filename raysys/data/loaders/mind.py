"""MIND news logs: `news.tsv`, `behaviors.tsv`, `entity_embedding.vec` in a train and a dev folder.

Times are of impressions only. The history column has none and is one list per user and split:
it becomes events without time, which lie before every impression. What the dev list of a user
has beyond his train list gets the last moment before the dev part. The unlabelled test folder
is not read: train gives train and (its last day) valid, dev gives test.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raysys.data.loaders.base import Imported, Options
from raysys.data.loaders.entities import BadEntities, json_entities
from raysys.data.loaders.lists import candidate_lists, codes_of, merge_duplicates
from raysys.data.loaders.reading import RAW_TSV, Source, first, read_text, require_file
from raysys.data.manifest import DataCard
from raysys.data.schema import ENTITY
from raysys.data.split import DAY_US, TEST, bounds_text, split_by_time, split_names
from raysys.errors import DataError

_NEWS = ("news_id", "category", "subcategory", "title", "abstract", "url", "title_entities",
         "abstract_entities")  # fmt: skip
_BEHAVIOURS = ("impression_id", "user_id", "time", "history", "impressions")
_TIME = "%m/%d/%Y %I:%M:%S %p"
_FOLDERS = {"train": ("train",), "dev": ("dev", "valid", "validation")}


class MindOptions(Options):
    """`valid_days`: how many of the last days of the train folder are the valid part."""

    valid_days: int = Field(1, ge=1)
    on_bad_entities: BadEntities = "fail"


class Mind:
    """Loader of MIND-small, MIND-large and anything in their layout."""

    name = "mind"
    version = "1"
    options = MindOptions

    def files(self, src: Path, options: MindOptions) -> list[Path]:
        """news.tsv and behaviors.tsv of both folders, and the entity vectors there are."""
        found = []
        for part in _FOLDERS:
            folder = part_folder(src, part)
            found += [require_file(folder / name) for name in ("news.tsv", "behaviors.tsv")]
            vectors = folder / "entity_embedding.vec"
            found += [vectors] if vectors.is_file() else []
        return found

    def load(self, src: Path, options: MindOptions) -> Imported:
        """Read both folders."""
        folders = {part: part_folder(src, part) for part in _FOLDERS}
        logs = {
            part: read_text(folder / "behaviors.tsv", RAW_TSV, _BEHAVIOURS)
            for part, folder in folders.items()
        }
        times = {part: log.times("time", _TIME) for part, log in logs.items()}
        train, dev = (pc.min_max(times[part]).as_py() for part in ("train", "dev"))
        if train["max"] is None or dev["min"] is None or train["max"] >= dev["min"]:
            raise DataError(
                f"{logs['dev'].path}: dev impressions must all lie after those of "
                f"{logs['train'].path}"
            )
        last_day = train["max"] // DAY_US
        bounds = ((last_day - options.valid_days + 1) * DAY_US, dev["min"])
        if bounds[0] <= train["min"]:
            raise DataError(f"{logs['train'].path}: valid_days leaves no training impressions")
        merged = 0
        parts = []
        for part, log in logs.items():
            table, gone = _impressions(part, log, times[part], bounds)
            parts.append(table)
            merged += gone
        vectors = [_vectors(folder / "entity_embedding.vec") for folder in folders.values()]
        return Imported(
            events=_events(logs["train"], logs["dev"], dev["min"]),
            impressions=pa.concat_tables(parts),
            items=_items([folder / "news.tsv" for folder in folders.values()], options),
            entities=distinct(pa.concat_tables(vectors), "id"),
            card=DataCard(
                dataset="mind",
                version=src.name,
                reader=self.name,
                label_rule="click = suffix -1 of a candidate",
                split_rule=f"time: dev folder is test, last {options.valid_days} day(s) of train "
                "valid",
                split_bounds=bounds_text(bounds),
                group_key="impression",
                history_cut="the history column: before the logged period, no times",
                counts={"merged_candidates": merged},
                licence="Microsoft Research licence: research only, no redistribution",
            ),
            history_behaviours=("click",),
        )


def part_folder(src: Path, part: str) -> Path:
    """The folder of a split: `train`, or one whose name ends in it (`MINDsmall_train`).

    Raises:
        DataError: none, or several.
    """
    found = [
        path
        for path in sorted(src.iterdir() if src.is_dir() else [])
        if path.is_dir() and path.name.lower().endswith(_FOLDERS[part])
    ]
    if len(found) != 1:
        raise DataError(
            f"{src}: {len(found) or 'no'} folders whose names end in "
            f"{' or '.join(_FOLDERS[part])}; one with news.tsv and behaviors.tsv is expected"
        )
    return found[0]


def _impressions(
    part: str, log: Source, ts: pa.Array, bounds: tuple[int, int]
) -> tuple[pa.Table, int]:
    ids = log.required("impression_id")
    repeated_id(log, ids)
    if ts.null_count:
        raise DataError(f"{log.where(first(ts.is_null()))}: column 'time' is empty")
    shown = pc.utf8_split_whitespace(log.required("impressions"))
    owner = pc.list_parent_indices(shown).to_numpy().astype(np.int64)
    tokens = pc.list_flatten(shown)
    labelled = pc.match_substring_regex(tokens, "^.+-[01]$")
    if not pc.all(labelled).as_py():
        row = first(pc.invert(labelled))
        raise DataError(
            f"{log.where(int(owner[row]))}: candidate {tokens[row]} has no label -0 or -1"
        )
    owner, items, label, merged = merge_duplicates(
        owner,
        pc.utf8_slice_codeunits(tokens, 0, -2),
        pc.ends_with(tokens, "1").to_numpy(zero_copy_only=False),
    )
    candidates, clicks = candidate_lists(owner, items, label, len(log))
    when = ts.to_numpy()
    split = split_by_time(when, bounds)
    table = pa.table(
        {
            "impression_id": pc.binary_join_element_wise(part, ids, "-"),
            "user_id": log.required("user_id"),
            "ts": ts,
            "candidates": candidates,
            "clicks": clicks,
            "orders": pa.array([[]] * len(log), pa.list_(pa.string())),
            "split": split_names(split),
        }
    )
    assert part == "train" or bool((split == TEST).all())
    return table, merged


def repeated_id(log: Source, ids: pa.Array) -> None:
    """Refuse an impression log that names an impression twice.

    Raises:
        DataError: it does; the second place is named.
    """
    codes = codes_of(ids)
    again = np.ones(len(codes), bool)
    again[np.unique(codes, return_index=True)[1]] = False
    if again.any():
        row = int(np.argmax(again))
        raise DataError(f"{log.where(row)}: duplicate impression id {ids[row]}")


def _histories(log: Source) -> pa.Table:
    """user_id and history text, one row per user; empty histories are dropped.

    Raises:
        DataError: a user with two different histories.
    """
    table = pa.table({"user_id": log.required("user_id"), "history": log.strings("history")})
    table = table.group_by(["user_id", "history"], use_threads=False).aggregate([])
    users = codes_of(table["user_id"].combine_chunks())
    if int(users.max(initial=-1)) + 1 != len(users):
        row = int(np.flatnonzero(np.bincount(users)[users] > 1)[0])
        raise DataError(
            f"{log.path}: user {table['user_id'][row]} has different histories in one split; "
            "in this layout a user's history is one list"
        )
    return table.filter(table["history"].is_valid())


def _events(train: Source, dev: Source, dev_start: int) -> pa.Table:
    """Train histories without time; what dev adds to them at the last moment before dev."""
    old, new = _histories(train), _histories(dev)
    position = pc.index_in(new["user_id"], value_set=old["user_id"].combine_chunks())
    before = old["history"].take(position.combine_chunks())
    same = pc.equal(new["history"], before).fill_null(False)
    fresh = new.filter(position.is_null())
    grown = pa.table({"user_id": new["user_id"], "old": before, "new": new["history"]}).filter(
        pc.and_(position.is_valid(), pc.invert(same))
    )
    added = [
        " ".join(_beyond(row["old"].split(), row["new"].split())) or None
        for row in grown.to_pylist()
    ]
    late = pa.table({"user_id": grown["user_id"], "history": pa.array(added, pa.string())})
    late = late.filter(late["history"].is_valid())
    return pa.concat_tables(
        [_clicks(old, None), _clicks(fresh, None), _clicks(late, dev_start - 1)]
    )


def _beyond(old: list[str], new: list[str]) -> list[str]:
    """What `new` has after its longest common beginning with `old`."""
    common = 0
    while common < min(len(old), len(new)) and old[common] == new[common]:
        common += 1
    return new[common:]


def _clicks(histories: pa.Table, ts: int | None) -> pa.Table:
    lists = pc.utf8_split_whitespace(histories["history"].combine_chunks())
    owner = pc.list_parent_indices(lists)
    items = pc.list_flatten(lists)
    return pa.table(
        {
            "user_id": histories["user_id"].combine_chunks().take(owner),
            "ts": pa.array([ts], pa.int64()).take(pa.array(np.zeros(len(items), np.int64))),
            "item_id": items,
            "behaviour": pa.array(["click"]).take(pa.array(np.zeros(len(items), np.int64))),
        }
    )


def _items(paths: list[Path], options: MindOptions) -> pa.Table:
    parts = []
    for path in paths:
        news = read_text(path, RAW_TSV, _NEWS)
        policy = options.on_bad_entities
        title = json_entities(news, "title_entities", "title", policy)
        abstract = json_entities(news, "abstract_entities", "abstract", policy)
        parts.append(
            pa.table(
                {
                    "item_id": news.required("news_id"),
                    "kind": pa.array(["news"] * len(news)),
                    "title": news.strings("title"),
                    "abstract": news.strings("abstract"),
                    "category": pa.array(
                        [
                            [level for level in path_ if level]
                            for path_ in zip(
                                news.strings("category").to_pylist(),
                                news.strings("subcategory").to_pylist(),
                                strict=True,
                            )
                        ],
                        pa.list_(pa.string()),
                    ),
                    "entities": pa.array(
                        [a + b for a, b in zip(title, abstract, strict=True)], pa.list_(ENTITY)
                    ),
                }
            )
        )
    return distinct(pa.concat_tables(parts), "item_id")


def distinct(table: pa.Table, key: str) -> pa.Table:
    """The first row of each key."""
    _, rows = np.unique(codes_of(table[key].combine_chunks()), return_index=True)
    return table.take(pa.array(np.sort(rows)))


def _vectors(path: Path) -> pa.Table:
    """`QID TAB number TAB ...` as (id, vector); empty if there is no such file."""
    ids: list[str] = []
    vectors: list[npt.NDArray[np.float32]] = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        name, *values = line.split()
        try:
            vector = np.array(values, np.float32)
        except ValueError as error:
            raise DataError(f"{path} line {number}: an entity vector must be numbers") from error
        if vectors and len(vector) != len(vectors[0]):
            raise DataError(
                f"{path} line {number}: {len(vector)} numbers where {len(vectors[0])} are expected"
            )
        ids.append(name)
        vectors.append(vector)
    return pa.table(
        {"id": pa.array(ids, pa.string()), "vector": pa.array(vectors, pa.list_(pa.float32()))}
    )
