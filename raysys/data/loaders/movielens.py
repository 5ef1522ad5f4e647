"""MovieLens ratings: `ratings.csv`, `movies.csv` and, if there, `tags.csv`.

A rating is a request with one candidate; it is a click from `threshold` stars on. Users rate
most films in one sitting, so the log is cut per user by default (`cut=time` cuts all at once).
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from raysys.data.loaders.base import Imported, Options
from raysys.data.loaders.lists import candidate_lists, numbered
from raysys.data.loaders.local_time import local_feature, local_part
from raysys.data.loaders.reading import CSV, first, read_text, require_file
from raysys.data.manifest import DataCard
from raysys.data.split import (
    TimeCut,
    bounds_text,
    percent,
    split_by_time,
    split_by_user_time,
    split_names,
    time_bounds,
)
from raysys.errors import DataError


class MovielensOptions(Options):
    """`cut`: per user (each user's newest ratings are his test part) or at one time for all."""

    threshold: float = 4.0
    cut: Literal["user-time", "time"] = "user-time"
    valid_share: float = Field(0.1, gt=0, lt=1)
    test_share: float = Field(0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _something_to_train(self) -> "MovielensOptions":
        if self.valid_share + self.test_share >= 1:
            raise ValueError("valid_share and test_share leave nothing to train on")
        return self


class Movielens:
    """Loader of the `ml-latest` CSV layout."""

    name = "movielens"
    version = "1"
    options = MovielensOptions

    def files(self, src: Path, options: MovielensOptions) -> list[Path]:
        """ratings.csv, movies.csv and tags.csv if it is there."""
        tags = src / "tags.csv"
        return [require_file(src / name) for name in ("ratings.csv", "movies.csv")] + (
            [tags] if tags.is_file() else []
        )

    def load(self, src: Path, options: MovielensOptions) -> Imported:
        """Read; one impression per rating."""
        files = self.files(src, options)
        ratings = read_text(files[0], CSV)
        user_ids, movie = ratings.required("userId"), ratings.required("movieId")
        ts, stars = ratings.times("timestamp", "s"), ratings.floats("rating")
        for name, column in (("timestamp", ts), ("rating", stars)):
            if column.null_count:
                row = first(column.is_null())
                raise DataError(f"{ratings.where(row)}: column {name!r} is empty")
        when = ts.to_numpy()
        users = pc.unique(user_ids)
        owner = pc.index_in(user_ids, value_set=users).to_numpy().astype(np.int64)
        cut = TimeCut(valid_share=options.valid_share, test_share=options.test_share)
        if options.cut == "time":
            bounds = time_bounds(when, cut)
            split, rule, on_card = split_by_time(when, bounds), cut.describe(), bounds_text(bounds)
        else:
            split, on_card = split_by_user_time(owner, when, cut), {}
            rule = (
                f"user-time: of each user the last {percent(cut.test_share)} of ratings test, "
                f"{percent(cut.valid_share)} before them valid"
            )
        liked = pc.greater_equal(stars, options.threshold)
        rows = len(ratings)
        candidates, clicks = candidate_lists(
            np.arange(rows), movie, liked.to_numpy(zero_copy_only=False), rows
        )
        weekday, daytime = local_part("weekday", ts), local_part("mealtime", ts)
        context = pa.StructArray.from_arrays([weekday, daytime], names=["weekday", "mealtime"])
        events = pa.table(
            {
                "user_id": user_ids,
                "ts": ts,
                "item_id": movie,
                "text": pa.nulls(rows, pa.string()),
                "behaviour": pc.if_else(liked, "like", "rate"),
                "context": context,
                "value": stars,
            }
        )
        impressions = pa.table(
            {
                "impression_id": numbered("r", np.arange(rows)),
                "user_id": user_ids,
                "ts": ts,
                "context": context,
                "candidates": candidates,
                "clicks": clicks,
                "orders": pa.array([[]] * rows, pa.list_(pa.string())),
                "split": split_names(split),
            }
        )
        return Imported(
            events=pa.concat_tables([events, *[_tags(path, events) for path in files[2:]]]),
            impressions=impressions.sort_by([("ts", "ascending"), ("impression_id", "ascending")]),
            items=_movies(files[1]),
            card=DataCard(
                dataset="movielens",
                version=src.name,
                reader=self.name,
                label_rule=f"click = rating >= {options.threshold:g}",
                split_rule=rule,
                split_bounds=on_card,
                group_key="user",
                history_cut="ratings before the request, liked or not",
                counts={"source_rows": rows},
                licence="GroupLens terms: research use, cite Harper and Konstan 2015",
                notes={"time": "of rating, UTC; users rate many films in one sitting"},
            ),
            history_behaviours=("like", "rate"),
            contexts=[local_feature("weekday", "weekday"), local_feature("mealtime", "mealtime")],
        )


def _tags(path: Path, like: pa.Table) -> pa.Table:
    tags = read_text(path, CSV)
    return pa.table(
        {
            "user_id": tags.required("userId"),
            "ts": tags.times("timestamp", "s"),
            "item_id": tags.required("movieId"),
            "text": tags.strings("tag"),
            "behaviour": pa.array(["tag"] * len(tags)),
            "context": pa.nulls(len(tags), like.schema.field("context").type),
            "value": pa.nulls(len(tags), pa.float64()),
        }
    )


def _movies(path: Path) -> pa.Table:
    movies = read_text(path, CSV)
    genres = pc.split_pattern(movies.strings("genres").fill_null(""), "|")
    title = movies.strings("title")
    year = pc.extract_regex(title.fill_null(""), r"\((?P<year>\d{4})\)$").field("year")
    return pa.table(
        {
            "item_id": movies.required("movieId"),
            "kind": pa.array(["film"] * len(movies)),
            "title": title,
            # The first genre stands for the film; all of them are an attribute.
            "category": pc.list_slice(genres, 0, 1),
            "attributes": pa.array(
                [
                    [(k, v) for k, v in (("genres", g), ("year", y)) if v]
                    for g, y in zip(
                        movies.strings("genres").to_pylist(), year.to_pylist(), strict=True
                    )
                ],
                pa.map_(pa.string(), pa.string()),
            ),
        }
    )
