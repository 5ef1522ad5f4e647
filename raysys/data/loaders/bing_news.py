"""Bing News click sample: `user TAB title TAB label TAB id:name;id:name`, no header.

There are no times, and the file lists a user's unclicked rows before the clicked ones, so file
order must not reach a model. Rows of one (user, normalised title) are merged, label = max; rows
are then put into folds. Impressions of the training part are small slates whose history is what
the user clicked in the training rows before them (in hash order); a test impression holds all
the user's test rows, with every training click as history.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raysys.data.loaders.base import Imported, Options
from raysys.data.loaders.entities import BadEntities, numbered_entities
from raysys.data.loaders.fold_history import fold_history
from raysys.data.loaders.lists import (
    candidate_lists,
    codes_of,
    merge_duplicates,
    numbered,
    running_number,
    strings,
)
from raysys.data.loaders.reading import RAW_TSV, Source, read_text, require_file
from raysys.data.manifest import DataCard
from raysys.data.schema import ENTITY
from raysys.data.split import TEST, TRAIN, Folds, split_names, stable_hash

_COLUMNS = ("user", "title", "label", "entities")


class BingNewsOptions(Folds, Options):
    """`slate` training rows make one impression."""

    slate: int = Field(5, ge=2)
    on_bad_entities: BadEntities = "fail"


class BingNews:
    """Loader of the sample's `raw_train.txt`."""

    name = "bing-news"
    version = "1"
    options = BingNewsOptions

    def files(self, src: Path, options: BingNewsOptions) -> list[Path]:
        """The one file: `src` itself or `raw_train.txt` in it."""
        return [require_file(src / "raw_train.txt" if src.is_dir() else src)]

    def load(self, src: Path, options: BingNewsOptions) -> Imported:
        """Read, merge, fold."""
        source = read_text(self.files(src, options)[0], RAW_TSV, _COLUMNS)
        user_ids = source.required("user")
        title = source.required("title")
        users = pc.unique(user_ids)
        key = pc.utf8_lower(pc.utf8_normalize(_squeezed(title), form="NFC"))
        titles = pc.unique(key)
        # Numbered by title: numbers in file order would tell clicked from unclicked.
        titles = titles.take(pc.sort_indices(titles))
        item_of = pc.index_in(key, value_set=titles).to_numpy().astype(np.int64)
        items = _items(source, title, item_of, options.on_bad_entities)
        # From here on a row is (user code, item code, label).
        owner = codes_of(user_ids)
        order = np.argsort(owner, kind="stable")
        owner, item, label, merged = merge_duplicates(
            owner[order],
            items["item_id"].combine_chunks().take(pa.array(item_of[order])),
            source.labels("label")[order],
        )
        keys = np.char.add(
            np.char.add(np.asarray(users.to_pylist(), str)[owner], "\t"),
            np.asarray(item.to_pylist(), str),
        )
        shuffle = np.lexsort((stable_hash(keys, options.seed + 2), owner))
        split = options.split(keys)[shuffle]
        owner, item, label = owner[shuffle], item.take(pa.array(shuffle)), label[shuffle]
        history = fold_history(owner, split, label)
        events = pa.table(
            {
                "user_id": users.take(pa.array(owner[history.rows])),
                "item_id": item.take(pa.array(history.rows)),
                "behaviour": pa.repeat("click", len(history.rows)),
            }
        )
        slate, first = _slates(owner, split, options.slate)
        by_slate = np.argsort(slate, kind="stable")
        candidates, clicks = candidate_lists(
            slate[by_slate], item.take(pa.array(by_slate)), label[by_slate], len(first)
        )
        impressions = pa.table(
            {
                "impression_id": numbered("i", np.arange(len(first))),
                "user_id": users.take(pa.array(owner[first])),
                "history_end": pa.array(history.end[first]),
                "candidates": candidates,
                "clicks": clicks,
                "orders": pa.array([[]] * len(first), pa.list_(pa.string())),
                "split": split_names(split[first]),
            }
        )
        return Imported(
            events=events,
            impressions=impressions,
            items=items,
            card=DataCard(
                dataset="bing-news",
                version="raw_train",
                reader=self.name,
                filters=("rows of one user and normalised title merged, label = max",),
                label_rule="click = label 1",
                split_rule=options.describe("rows (user, title)"),
                negative_policy="logged",
                group_key="user",
                history_cut="clicks of the training folds; for a training slate those before it",
                counts={"source_rows": len(source), "merged_rows": merged},
                licence="MIT",
                notes={
                    "time": "none in the source; order within a user is a hash",
                    "slate": options.slate,
                },
            ),
            history_behaviours=("click",),
            candidates="built",
        )


def _squeezed(text: pa.Array) -> pa.Array:
    return pc.replace_substring_regex(pc.utf8_trim_whitespace(text), r"\s+", " ")


def _items(
    source: Source, title: pa.Array, item_of: npt.NDArray[np.int64], policy: BadEntities
) -> pa.Table:
    """One row per distinct title, with the union of the entities its rows name."""
    entities = numbered_entities(source, "entities", policy)
    count = int(item_of.max()) + 1
    firsts = np.full(count, len(item_of), np.int64)
    np.minimum.at(firsts, item_of, np.arange(len(item_of)))
    by_item: list[dict[str, dict[str, object]]] = [{} for _ in range(count)]
    for code, found in zip(item_of.tolist(), entities, strict=True):
        for entity in found:
            by_item[code].setdefault(str(entity["id"]), entity)
    return pa.table(
        {
            "item_id": numbered("N", np.arange(count), 5),
            "kind": strings(["news"] * count),
            "title": title.take(pa.array(firsts)),
            "entities": pa.array([list(found.values()) for found in by_item], pa.list_(ENTITY)),
        }
    )


def _slates(
    owner: npt.NDArray[np.int64], split: npt.NDArray[np.int8], size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Impression number [N] of each row and first row [I] of each impression.

    Training rows of a user go `size` by `size`; all valid, and all test rows of a user go
    together, so that a user is one group.
    """
    part = owner * (TEST + 1) + split
    order = np.argsort(part, kind="stable")
    place = np.empty(len(owner), np.int64)
    place[order] = running_number(part[order])
    slice_ = np.where(split == TRAIN, place // size, 0)
    key = part * (int(slice_.max(initial=0)) + 1) + slice_
    _, first, slate = np.unique(key, return_index=True, return_inverse=True)
    return slate.astype(np.int64), first.astype(np.int64)
