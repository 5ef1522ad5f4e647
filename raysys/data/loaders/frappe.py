"""Frappe: which app a user opened in which context, without times.

    frappe.csv  user item cnt daytime weekday isweekend homework cost weather country city
    meta.csv    item package category downloads developer icon language description name price
                rating, short desc (optional; gives the apps their words)

Both are tab-separated with a header. There are no times, so the split is random. `unknown`, and
city 0, are missing values.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raysys.data.loaders.base import Imported, Options, categorical
from raysys.data.loaders.derived import derived_lists
from raysys.data.loaders.fold_history import fold_history
from raysys.data.loaders.lists import codes_of, numbered, strings
from raysys.data.loaders.negatives import NegativeRule
from raysys.data.loaders.reading import TSV, Source, read_text, require_file
from raysys.data.manifest import DataCard
from raysys.data.split import Folds, split_names, stable_hash
from raysys.errors import DataError

CONTEXTS = ("daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
_UNKNOWN = {"city": "0"}  # the others write `unknown`
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_NULL = pa.scalar(None, pa.string())
_ATTRIBUTES = ("package", "developer", "downloads", "language", "rating")


class FrappeOptions(Folds, Options):
    """Which fold over rows is the test part; `negatives` per positive."""

    negatives: int = Field(19, ge=1)


class Frappe:
    """Loader of `frappe.csv` and, if it is there, `meta.csv`."""

    name = "frappe"
    version = "1"
    options = FrappeOptions

    def files(self, src: Path, options: FrappeOptions) -> list[Path]:
        """frappe.csv, and meta.csv if it is there."""
        meta = src / "meta.csv"
        return [require_file(src / "frappe.csv")] + ([meta] if meta.is_file() else [])

    def load(self, src: Path, options: FrappeOptions) -> Imported:
        """Read; one impression per user, app and context."""
        files = self.files(src, options)
        source = read_text(files[0], TSV)
        rows = _rows(source)
        keys = rows[["user", "item", *CONTEXTS]].astype(str).agg("\t".join, axis=1).to_numpy(object)
        # Equal rows count as one, and the order of the file must tell nothing.
        order = np.lexsort((stable_hash(keys, options.seed + 3), rows["user"]))
        rows, split = rows.iloc[order], options.split(keys)[order]
        users = numbered("u", rows["user"].to_numpy(), 5)
        apps = np.unique(rows["item"])
        item_ids = numbered("a", apps, 5)
        item = np.searchsorted(apps, rows["item"])
        context = pa.StructArray.from_arrays(
            [strings([value or None for value in rows[name]]) for name in CONTEXTS],
            names=list(CONTEXTS),
        )
        rule = NegativeRule(rule="same-area", count=options.negatives, seed=options.seed)
        moment = rows.groupby(["user", *CONTEXTS]).ngroup().to_numpy()
        everything = np.ones(len(rows), bool)
        candidates, clicks = derived_lists(
            rule,
            items=item_ids,
            item=item,
            moment=moment,
            split=split,
            chosen=everything,
            # The cost is the chosen app's own: among apps of another cost it would tell it.
            area=codes_of(strings(rows["cost"].tolist())),
        )
        history = fold_history(codes_of(users), split, everything)
        events = pa.table(
            {
                "user_id": users.take(pa.array(history.rows)),
                "item_id": item_ids.take(pa.array(item[history.rows])),
                "behaviour": pa.repeat("click", len(history.rows)),
                "context": context.take(pa.array(history.rows)),
                "value": pa.array(rows["cnt"].to_numpy(np.float64)[history.rows]),
            }
        )
        impressions = pa.table(
            {
                "impression_id": numbered("r", np.arange(len(rows)), 6),
                "user_id": users,
                "history_end": pa.array(history.end),
                "context": context,
                "candidates": candidates,
                "clicks": clicks,
                "orders": pa.array([[]] * len(rows), pa.list_(pa.string())),
                "split": split_names(split),
            }
        )
        return Imported(
            events=events,
            impressions=impressions,
            items=_items(read_text(files[1], TSV)) if files[1:] else _bare(item_ids),
            card=DataCard(
                dataset="frappe",
                version="with meta" if files[1:] else "without meta",
                reader=self.name,
                label_rule="click = the app that was opened in this context",
                split_rule="random, there are no times to split by; "
                + options.describe("rows (user, app, context)"),
                negative_policy=f"{rule.count} per positive, uniform among apps opened at the "
                "same cost up to the end of the split, none that the user opened in that same "
                "context up to then",
                negative_seed=rule.seed,
                group_key="impression",
                history_cut="apps opened in rows of the training folds; for a training row those "
                "before it",
                counts={"source_rows": len(source), "merged_rows": len(source) - len(rows)},
                licence="research only, no redistribution; cite Baltrunas et al. 2015",
                notes={
                    "time": "none in the source, so random split only: a test row's user and app "
                    "may be in the training part in another context; order within a user is a hash",
                    "contexts": "unknown, and city 0, are missing values",
                },
            ),
            history_behaviours=("click",),
            candidates="built",
            contexts=[categorical(name, sorted(set(rows[name]) - {""})) for name in CONTEXTS],
        )


def _rows(source: Source) -> pd.DataFrame:
    """Distinct (user, item, contexts) with summed cnt; unknown context values are empty."""
    frame = pd.DataFrame({name: source.integers(name) for name in ("user", "item", "cnt")})
    bad = (frame["cnt"] < 1).to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{source.where(row)}: column 'cnt' must be 1 or more, not "
                        f"{frame['cnt'][row]}")  # fmt: skip
    for name in CONTEXTS:
        values = source.strings(name)
        unknown = pc.equal(values, _UNKNOWN.get(name, "unknown"))
        frame[name] = pc.if_else(unknown, "", values).fill_null("").to_pylist()
    return frame.groupby(["user", "item", *CONTEXTS])["cnt"].sum().reset_index()


def _bare(item_ids: pa.Array) -> pa.Table:
    return pa.table({"item_id": item_ids, "kind": strings(["app"] * len(item_ids))})


def _items(meta: Source) -> pa.Table:
    """Apps with their words; `unknown` is null everywhere."""
    attributes = {name: _known(meta, name).to_pylist() for name in _ATTRIBUTES}
    category = _known(meta, "category").to_pylist()
    return pa.table(
        {
            "item_id": numbered("a", meta.integers("item"), 5),
            "kind": strings(["app"] * len(meta)),
            "name": _known(meta, "name"),
            "abstract": _known(meta, "short desc"),
            "text": _known(meta, "description"),
            "category": pa.array([[c] if c else None for c in category], pa.list_(pa.string())),
            "price": pa.array(map(_price, _known(meta, "price").to_pylist()), pa.float64()),
            "attributes": pa.array(
                [
                    [(k, v) for k, v in zip(attributes, values, strict=True) if v]
                    for values in zip(*attributes.values(), strict=True)
                ],
                pa.map_(pa.string(), pa.string()),
            ),
        }
    )


def _known(meta: Source, name: str) -> pa.Array:
    values = meta.strings(name)
    return pc.if_else(pc.equal(pc.utf8_lower(values), "unknown"), _NULL, values)


def _price(text: str | None) -> float | None:
    """`Free` is 0; else the first number in the text, None where there is none."""
    if text is not None and text.lower() == "free":
        return 0.0
    found = _NUMBER.search(text or "")
    return float(found.group()) if found else None
