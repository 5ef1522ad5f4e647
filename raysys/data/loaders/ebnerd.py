"""EB-NeRD (Danish news): `train/` and `validation/` with behaviors.parquet and history.parquet,
`articles.parquet` beside them or absent, an unlabelled `test/` that is read on demand.

Barred because they tell the future: `next_*` and the reading of the page itself (`read_time`,
`scroll_percentage` of behaviors), `total_*` of articles. Rows with `is_beyond_accuracy` share
one impression id and are dropped. One column of the future is a label: a click whose page was
read for more than 30 s (`next_read_time`) is an order. Past reads are `click` events with a time
and no more: device, page and subscription are known of requests only.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from raysys.data.loaders.base import Imported, Options, categorical
from raysys.data.loaders.lists import candidate_lists, merge_duplicates
from raysys.data.loaders.local_time import local_feature, local_part
from raysys.data.loaders.mind import distinct, repeated_id
from raysys.data.loaders.reading import Source, combined, first, read_parquet, require_file
from raysys.data.manifest import DataCard
from raysys.data.schema import ENTITY
from raysys.data.split import DAY_US, bounds_text, split_by_time, split_names
from raysys.errors import DataError

_READ_S = 30.0
_PAGES = ("front", "article")
_DEVICES = {"1": "desktop", "2": "mobile", "3": "tablet"}
_BEHAVIOURS = ("impression_id", "user_id", "impression_time", "device_type", "is_subscriber",
               "article_ids_inview")  # fmt: skip
_OPTIONAL = ("article_id", "article_ids_clicked", "next_read_time", "is_beyond_accuracy")
_HISTORY = ("user_id", "impression_time_fixed", "article_id_fixed", "read_time_fixed")


class EbnerdOptions(Options):
    """`hidden_test` also reads the unlabelled test part: train, validation and test are then the
    three parts, and no metric exists on the last."""

    valid_days: int = Field(1, ge=1)
    hidden_test: bool = False


class Ebnerd:
    """Loader of EB-NeRD demo, small and large."""

    name = "ebnerd"
    version = "2"
    options = EbnerdOptions

    def files(self, src: Path, options: EbnerdOptions) -> list[Path]:
        """behaviors and history of each part, and articles if there are any."""
        parts = ["train", "validation"] + (["test"] if options.hidden_test else [])
        files = [
            require_file(src / part / f"{name}.parquet")
            for part in parts
            for name in ("behaviors", "history")
        ]
        articles = src / "articles.parquet"
        return files + ([articles] if articles.is_file() else [])

    def load(self, src: Path, options: EbnerdOptions) -> Imported:
        """Read the parts."""
        parts = ["train", "validation"] + (["test"] if options.hidden_test else [])
        logs = {part: _behaviours(src / part / "behaviors.parquet") for part in parts}
        times = {part: log.times("impression_time") for part, log in logs.items()}
        bounds = _bounds(logs, times, options)
        tables, merged = [], 0
        for part, log in logs.items():
            table, gone = _impressions(part, log, times[part], bounds)
            tables.append(table)
            merged += gone
        articles = src / "articles.parquet"
        return Imported(
            events=_events([src / part / "history.parquet" for part in parts]),
            impressions=pa.concat_tables(tables),
            items=_articles(articles) if articles.is_file() else _no_articles(),
            card=DataCard(
                dataset="ebnerd",
                version=src.name,
                reader=self.name,
                filters=("is_beyond_accuracy rows dropped",),
                label_rule="click = article_ids_clicked; order = the one click of a request, "
                f"next_read_time > {_READ_S:g} s",
                split_rule="time: the folders train, validation and test"
                if options.hidden_test
                else "time: validation folder is test, last "
                f"{options.valid_days} day(s) of train valid",
                split_bounds=bounds_text(bounds),
                group_key="impression",
                history_cut="reads before the request, by the history files' own times",
                counts={"merged_candidates": merged},
                licence="publisher's terms: accept them first; research only",
                notes={
                    "barred": "next_*, total_*, read_time and scroll of the request itself; "
                    "next_read_time is in the order label only"
                },
            ),
            history_behaviours=("click",),
            contexts=[
                categorical("device", tuple(_DEVICES.values())),
                categorical("subscriber", ("no", "yes")),
                categorical("page", _PAGES),
                local_feature("mealtime", "mealtime"),
                local_feature("weekday", "weekday"),
            ],
        )


def _behaviours(path: Path) -> Source:
    names = pq_names(path)
    extra = [name for name in _OPTIONAL if name in names]
    log = read_parquet(path, (*_BEHAVIOURS, *extra))
    if "is_beyond_accuracy" not in extra:
        return log
    kept = pc.invert(log.column("is_beyond_accuracy").fill_null(False))
    return Source(path, log.table.filter(kept))


def pq_names(path: Path) -> list[str]:
    """Column names of a Parquet file.

    Raises:
        DataError: missing or unreadable.
    """
    try:
        return list(pq.read_schema(require_file(path)).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: unreadable Parquet file ({error})") from error


def _bounds(
    logs: dict[str, Source], times: dict[str, pa.Array], options: EbnerdOptions
) -> tuple[int, int]:
    for part, ts in times.items():
        if ts.null_count or not len(ts):
            raise DataError(f"{logs[part].path}: impression_time is empty")
    ends = {part: pc.min_max(ts).as_py() for part, ts in times.items()}
    for before, after in pairwise(ends):
        if ends[before]["max"] >= ends[after]["min"]:
            raise DataError(f"{logs[after].path}: must lie after {logs[before].path} in time")
    if options.hidden_test:
        return ends["validation"]["min"], ends["test"]["min"]
    valid = ends["train"]["max"] // DAY_US * DAY_US - (options.valid_days - 1) * DAY_US
    if valid <= ends["train"]["min"]:
        raise DataError(f"{logs['train'].path}: valid_days leaves no training impressions")
    return valid, ends["validation"]["min"]


def _impressions(
    part: str, log: Source, ts: pa.Array, bounds: tuple[int, int]
) -> tuple[pa.Table, int]:
    ids = log.strings("impression_id")
    repeated_id(log, ids)
    shown = log.column("article_ids_inview")
    owner = pc.list_parent_indices(shown).to_numpy().astype(np.int64)
    items = pc.list_flatten(shown).cast(pa.string())
    label = np.zeros(len(items), bool)
    if "article_ids_clicked" in log.names:
        clicked = log.column("article_ids_clicked")
        by = pc.list_parent_indices(clicked).to_numpy().astype(np.int64)
        chosen = pc.list_flatten(clicked).cast(pa.string())
        distinct_ids = pc.unique(pa.concat_arrays([items, chosen]))
        key, click_key = (
            rows * len(distinct_ids) + pc.index_in(values, value_set=distinct_ids).to_numpy()
            for rows, values in ((owner, items), (by, chosen))
        )
        outside = ~np.isin(click_key, key)
        if outside.any():
            row = int(np.argmax(outside))
            raise DataError(
                f"{log.path} impression {ids[int(by[row])]}: clicked article {chosen[row]} is not "
                "among article_ids_inview"
            )
        label = np.isin(key, click_key)
    owner, items, label, merged = merge_duplicates(owner, items, label)
    candidates, clicks = candidate_lists(owner, items, label, len(log))
    ordered = label & _long_read(log, np.bincount(owner[label], minlength=len(log)))[owner]
    _, orders = candidate_lists(owner, items, ordered, len(log))
    device = log.strings("device_type").fill_null("")
    names = pc.index_in(device, value_set=pa.array(list(_DEVICES)))
    context = pa.StructArray.from_arrays(
        [
            pa.array(list(_DEVICES.values())).take(names),
            pc.if_else(log.column("is_subscriber"), "yes", "no"),
            _page(log),
            local_part("mealtime", ts),
            local_part("weekday", ts),
        ],
        names=["device", "subscriber", "page", "mealtime", "weekday"],
    )
    return (
        pa.table(
            {
                "impression_id": pc.binary_join_element_wise(part, ids, "-"),
                "user_id": log.required("user_id"),
                "ts": ts,
                "context": context,
                "candidates": candidates,
                "clicks": clicks,
                "orders": orders,
                "split": split_names(split_by_time(ts.to_numpy(), bounds)),
            }
        ),
        merged,
    )


def _long_read(log: Source, clicks: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether what was clicked in each of N requests was read for long [N].

    clicks: [N]. `next_read_time` is one number, so it says nothing of two clicks of a request.
    """
    if "next_read_time" not in log.names:
        return np.zeros(len(log), bool)
    seconds = log.floats("next_read_time").to_numpy(zero_copy_only=False)
    long: npt.NDArray[np.bool_] = (clicks == 1) & (seconds > _READ_S)
    return long


def _page(log: Source) -> pa.Array:
    """Where each list was shown [N]: below an article, or on the front page, which has no
    `article_id`; null where the file does not tell."""
    if "article_id" not in log.names:
        return pa.nulls(len(log), pa.string())
    return pc.if_else(log.column("article_id").is_null(), *_PAGES)


def _events(paths: list[Path]) -> pa.Table:
    """Reads of all history files, each (user, time, article) once: the files overlap."""
    parts = []
    for path in paths:
        source = read_parquet(path, _HISTORY)
        times = source.column("impression_time_fixed")
        owner = pc.list_parent_indices(times)
        moments = pc.list_flatten(times).cast(pa.timestamp("us")).cast(pa.int64())
        parts.append(
            pa.table(
                {
                    "user_id": source.required("user_id").take(owner),
                    "ts": moments,
                    "item_id": pc.list_flatten(source.column("article_id_fixed")).cast(pa.string()),
                    "value": pc.list_flatten(source.column("read_time_fixed")).cast(pa.float64()),
                }
            )
        )
    table = pa.concat_tables(parts)
    table = table.group_by(["user_id", "ts", "item_id"], use_threads=False).aggregate(
        [("value", "first")]
    )
    table = table.rename_columns({"value_first": "value"})
    context = pa.StructArray.from_arrays(
        [
            local_part("mealtime", combined(table["ts"])),
            local_part("weekday", combined(table["ts"])),
        ],
        names=["mealtime", "weekday"],
    )
    return table.append_column("context", context).append_column(
        "behaviour", pa.array(["click"] * len(table))
    )


def _no_articles() -> pa.Table:
    return pa.table({"item_id": pa.array([], pa.string())})


def _articles(path: Path) -> pa.Table:
    names = pq_names(path)
    wanted = ("article_id", "title", "subtitle", "body", "published_time", "category_str",
              "subcategory", "ner_clusters", "entity_groups", "topics", "premium")  # fmt: skip
    articles = read_parquet(path, [name for name in wanted if name in names])
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "item_id": articles.required("article_id"),
        "kind": pa.array(["news"] * len(articles)),
        "title": articles.strings("title"),
    }
    for ours, theirs in (("abstract", "subtitle"), ("text", "body")):
        if theirs in names:
            columns[ours] = articles.strings(theirs)
    if "published_time" in names:
        columns["created_at"] = articles.times("published_time")
    table = articles.table.to_pylist()
    columns["category"] = pa.array(
        [
            [str(value) for value in (row.get("category_str"), *(row.get("subcategory") or [])[:1])
             if value is not None]
            for row in table
        ],
        pa.list_(pa.string()),
    )  # fmt: skip
    columns["entities"] = pa.array([_entities(row) for row in table], pa.list_(ENTITY))
    columns["attributes"] = pa.array(
        [
            [("premium", str(row["premium"]).lower())] if row.get("premium") is not None else []
            for row in table
        ],
        pa.map_(pa.string(), pa.string()),
    )
    if pc.any(pc.is_null(columns["item_id"])).as_py():
        raise DataError(f"{path} row {first(columns['item_id'].is_null()) + 1}: no article_id")
    return distinct(pa.table(columns), "item_id")


def _entities(row: dict[str, object]) -> list[dict[str, object]]:
    """Entity names as ids: the set has no knowledge-base ids."""
    names, kinds = row.get("ner_clusters"), row.get("entity_groups")
    labels = list(names) if isinstance(names, (list, tuple)) else []
    types = list(kinds) if isinstance(kinds, (list, tuple)) else []
    types += [None] * (len(labels) - len(types))
    found = {
        str(label): {"id": str(label), "label": str(label), "type": kind}
        for label, kind in zip(labels, types, strict=False)
    }
    return list(found.values())
