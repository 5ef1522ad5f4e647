"""Foursquare NYC restaurants: check-ins, tips and tags without times.

    dataset_ubicomp2013_checkins.txt  user, venue
    dataset_ubicomp2013_tips.txt      user, venue, text (Latin-1)
    dataset_ubicomp2013_tags.txt      venue, tags with commas (GBK, for the accents too)

A venue that a user checked in at is a request, however often he did; each user's venues are
spread over folds. Everything of a held-out venue is held out: the check-ins, and the user's own
tips there, which are neither events nor part of the venue's text. Tips at venues where the user
never checked in are no requests and come first in his history.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raysys.data.loaders.base import Imported, Options
from raysys.data.loaders.derived import derived_lists
from raysys.data.loaders.lists import numbered, strings
from raysys.data.loaders.negatives import NegativeRule
from raysys.data.loaders.reading import Dialect, Source, read_text, require_file
from raysys.data.manifest import DataCard
from raysys.data.split import TEST, TRAIN, Folds, split_names, stable_hash
from raysys.errors import DataError

Int64Array = npt.NDArray[np.int64]
_FILES = tuple(f"dataset_ubicomp2013_{name}.txt" for name in ("checkins", "tips", "tags"))
_LATIN = Dialect(delimiter="\t", quoted=False, header=False, encoding="latin-1")
_CHINESE = Dialect(delimiter="\t", quoted=False, header=False, encoding="gbk")


class RestaurantOptions(Folds, Options):
    """Which fold of each user's venues is the test part, and how negatives are drawn."""

    negatives: int = Field(19, ge=1)
    rule: Literal["uniform", "popularity"] = "uniform"


class FoursquareRestaurants:
    """Loader of dataset_ubicomp2013_{checkins,tips,tags}.txt."""

    name = "foursquare-restaurants"
    version = "1"
    options = RestaurantOptions

    def files(self, src: Path, options: RestaurantOptions) -> list[Path]:
        """The three files of the folder `src`."""
        return [require_file(src / name) for name in _FILES]

    def load(self, src: Path, options: RestaurantOptions) -> Imported:
        """Read; one impression per user and venue checked in at."""
        files = self.files(src, options)
        checkins = read_text(files[0], _LATIN, ("user", "venue"))
        tips = read_text(files[1], _LATIN, ("user", "venue", "text"))
        tags = read_text(files[2], _CHINESE, ("venue", "tags"))
        actions = _actions(checkins, tips)
        units = _units(actions, options)
        actions["split"] = units["split"].to_numpy()[actions["unit"]]
        venues = np.unique(np.concatenate([actions["venue"], tags.integers("venue")]))
        item_ids = numbered("v", venues, 7)
        chosen = units["visits"].to_numpy() > 0
        rule = NegativeRule(rule=options.rule, count=options.negatives, seed=options.seed)
        candidates, clicks = derived_lists(
            rule,
            items=item_ids,
            item=np.searchsorted(venues, units["venue"]),
            moment=units["user"].to_numpy(),
            split=units["split"].to_numpy(),
            chosen=chosen,
            offered=chosen,
        )
        events, end = _histories(units, actions)
        asked = units[chosen]
        users = numbered("u", asked["user"].to_numpy(), 7)
        impressions = pa.table(
            {
                "impression_id": pc.binary_join_element_wise(
                    users, numbered("v", asked["venue"].to_numpy(), 7), "-"
                ),
                "user_id": users,
                "history_end": pa.array(end[chosen]),
                "candidates": candidates,
                "clicks": clicks,
                "orders": pa.array([[]] * len(asked), pa.list_(pa.string())),
                "split": split_names(asked["split"].to_numpy()),
            }
        )
        text = actions[~actions["visit"] & (actions["split"] == TRAIN)]
        return Imported(
            events=events,
            impressions=impressions,
            items=_items(venues, item_ids, tags, text),
            card=DataCard(
                dataset="foursquare-restaurants",
                version="nyc-2013",
                reader=self.name,
                filters=("tips at a venue held out for their writer are no part of its text",),
                label_rule="click = the venue checked in at, once per user",
                split_rule=options.describe_within("each user's venues"),
                negative_policy=f"{rule.count} per positive, {rule.rule}, among venues checked in "
                "at up to the end of the split, none where the user checked in or left a tip up "
                "to then",
                negative_seed=rule.seed,
                group_key="impression",
                history_cut="check-ins and tips at other venues of the training part, for a test "
                "request also of the valid part; for a training request those before it",
                counts={
                    "source_checkins": len(checkins),
                    "source_tips": len(tips),
                    "text_tips": len(text),
                },
                licence="free for research; cite Yang et al. 2013 (UbiComp and Hypertext); no "
                "redistribution without the authors' leave",
                notes={
                    "time": "none in the source; order within a user is a hash",
                    "text": "tags are not dated or signed, so they may come from held-out users; "
                    "tips are those of training pairs",
                },
            ),
            history_behaviours=("checkin", "comment"),
            candidates="built",
        )


def _actions(checkins: Source, tips: Source) -> pd.DataFrame:
    """Check-ins, then tips: user, venue, text (None for a check-in), visit, and unit, the number
    of the (user, venue) pair."""
    parts = [
        pd.DataFrame(
            {
                "user": source.integers("user"),
                "venue": source.integers("venue"),
                "text": source.required("text").to_pylist() if "text" in source.names else None,
            }
        )
        for source in (checkins, tips)
    ]
    actions = pd.concat(parts, ignore_index=True)
    actions["visit"] = actions["text"].isna()
    actions["unit"] = actions.groupby(["user", "venue"]).ngroup()
    return actions


def _units(actions: pd.DataFrame, options: RestaurantOptions) -> pd.DataFrame:
    """One row per (user, venue) in the order of their numbers: visits, split, place in the user's
    history by hash."""
    units = actions.groupby("unit").agg(
        user=("user", "first"),
        venue=("venue", "first"),
        visits=("visit", "sum"),
        size=("text", "size"),
    )
    keys = (units["user"].astype(str) + "\t" + units["venue"].astype(str)).to_numpy(object)
    chosen = units["visits"].to_numpy() > 0
    split = np.full(len(units), TRAIN, np.int8)
    split[chosen] = options.split_within(units["user"].to_numpy()[chosen], keys[chosen])
    units["split"] = split
    units["hash"] = stable_hash(keys, options.seed + 3)
    return units


def _histories(units: pd.DataFrame, actions: pd.DataFrame) -> tuple[pa.Table, Int64Array]:
    """Events, and the exclusive history end [U] of each unit.

    A user's events are his tips at venues where he never checked in, then the training units,
    then the valid ones. A unit of the training part sees what stands before it, the others see
    the parts before theirs.
    """
    user, split = units["user"].to_numpy(), units["split"].to_numpy()
    asked = (units["visits"] > 0).to_numpy()
    order = np.lexsort((units["hash"], asked, split, user))
    size = np.where(split == TEST, 0, units["size"].to_numpy())[order]
    before = np.cumsum(size) - size
    _, first_of_user = np.unique(user[order], return_index=True)
    _, first_of_part = np.unique(user[order] * (TEST + 1) + split[order], return_index=True)
    rank = np.arange(len(order))
    user_at = first_of_user[np.searchsorted(first_of_user, rank, side="right") - 1]
    part_at = first_of_part[np.searchsorted(first_of_part, rank, side="right") - 1]
    seen_from = np.where(split[order] == TRAIN, rank, part_at)
    end = np.empty(len(order), np.int64)
    end[order] = before[seen_from] - before[user_at]
    place = np.empty(len(order), np.int64)
    place[order] = rank
    rows = actions[actions["split"] != TEST]
    rows = rows.iloc[np.argsort(place[rows["unit"]], kind="stable")]
    visit = rows["visit"].to_numpy()
    events = pa.table(
        {
            "user_id": numbered("u", rows["user"].to_numpy(), 7),
            "item_id": numbered("v", rows["venue"].to_numpy(), 7),
            "text": strings(rows["text"].tolist()),
            "behaviour": strings(np.where(visit, "checkin", "comment").tolist()),
        }
    )
    return events, end


def _items(venues: Int64Array, item_ids: pa.Array, tags: Source, tips: pd.DataFrame) -> pa.Table:
    """All venues; abstract: its tags, text: its tips in the order of the file, one a line."""
    tagged = tags.integers("venue")
    values, counts = np.unique(tagged, return_counts=True)
    if (counts > 1).any():
        row = int(np.flatnonzero(tagged == values[counts > 1][0])[1])
        raise DataError(f"{tags.where(row)}: venue {tagged[row]} has tags before")
    words = dict(zip(tagged.tolist(), tags.strings("tags").to_pylist(), strict=True))
    lists = {
        venue: [word.strip() for word in (line or "").split(",") if word.strip()]
        for venue, line in words.items()
    }
    said = tips.groupby("venue")["text"].agg("\n".join).to_dict()
    numbers = venues.tolist()
    return pa.table(
        {
            "item_id": item_ids,
            "kind": strings(["venue"] * len(venues)),
            "abstract": strings([", ".join(lists.get(v, [])) or None for v in numbers]),
            "text": strings([said.get(v) for v in numbers]),
            "attributes": pa.array(
                [[("tags", "|".join(lists[v]))] if lists.get(v) else [] for v in numbers],
                pa.map_(pa.string(), pa.string()),
            ),
        }
    )
