"""The three kinds of pairs of contrastive tuning, and what counts as a negative (§2.2).

uu: two texts of one user from disjoint periods; or two users who ordered the same places.
pp: two places that the same users chose in one week; or two views of one place; or one brand.
up: a user strictly before t, and the place chosen at t.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from pydantic import BaseModel, ConfigDict, Field

from raysys.data.schema import SPLITS
from raysys.larr.log import BoolArray, Int64Array, Log, Part, neighbours
from raysys.larr.texts import Places

Kind = Literal["uu", "pp", "up"]
KINDS: tuple[Kind, ...] = ("uu", "pp", "up")
_PLACE_USERS = 1000
PlaceStyle = Literal["poi", "given", "told"]
UserStyle = Literal["profile", "visits", "user"]
# (which pairs [n], how many of each, generator) -> item rows [n, H], −1 where there is none.
Draw = Callable[[Int64Array, int, np.random.Generator], Int64Array]


class PairConfig(BaseModel):
    """Rules of positives and negatives.

    uu: periods (two disjoint periods of one user) or overlap (users of most common orders).
    pp: neighbours (item-CF of one week), views (given and told half of one place) or brand.
    up: clicks (a click or an order) or orders.
    neighbours: nearest others per place or user; least: users (or places) they must share.
    min_events: events that each period of a user needs.
    hard: hard negatives per pair. pp: same area, other category; up: shown and not clicked.
    limit: at most so many pairs of a kind: those of the newest requests, or drawn by the seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uu: Literal["periods", "overlap"] = "periods"
    pp: Literal["neighbours", "views", "brand"] = "neighbours"
    up: Literal["clicks", "orders"] = "clicks"
    neighbours: int = Field(default=5, ge=1)
    least: int = Field(default=2, ge=1)
    min_events: int = Field(default=3, ge=1)
    hard: int = Field(default=1, ge=0)
    limit: int = Field(default=200_000, ge=2)


@dataclass(frozen=True)
class Side:
    """One text of each of N pairs: places by item row [N], or users by event span [N]."""

    style: PlaceStyle | UserStyle
    item: Int64Array | None = None
    user: Int64Array | None = None
    start: Int64Array | None = None
    end: Int64Array | None = None

    def text(self, log: Log, pair: int, *, training: bool) -> str:
        """The text of one pair."""
        if self.item is not None:
            return place_text(log.places, int(self.item[pair]), self.style)
        assert self.user is not None and self.start is not None and self.end is not None
        span = int(self.start[pair]), int(self.end[pair])
        return log.user_text(int(self.user[pair]), *span, self.style, training=training)

    def take(self, chosen: Int64Array) -> "Side":
        """The side of some of the pairs."""
        columns = {k: v for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return Side(self.style, **{name: column[chosen] for name, column in columns.items()})


def place_text(places: Places, row: int, style: str) -> str:
    """The whole text of a place (style poi) or one half of it."""
    return places.text(row) if style == "poi" else places.view(row, style)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Pairs:
    """N positive pairs of one kind.

    anchor_id [N]: rows of `related`; positive_id [N]: its columns (users or items).
    related [A, I]: non-zero where a column is another positive of that anchor.
    group [I]: columns of one group (a brand) are no negatives of each other; 0 is no group.
    draw: hard negatives, or None.
    """

    kind: Kind
    anchor: Side
    positive: Side
    anchor_id: Int64Array
    positive_id: Int64Array
    related: sp.csr_matrix
    group: Int64Array
    draw: Draw | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.positive_id)

    @property
    def symmetric(self) -> bool:
        """Whether the loss goes both ways: both sides are of one sort."""
        return self.kind != "up"

    def take(self, chosen: Int64Array) -> "Pairs":
        """Some of the pairs; hard negatives are drawn for them."""
        draw = self.draw
        return Pairs(
            self.kind,
            self.anchor.take(chosen),
            self.positive.take(chosen),
            self.anchor_id[chosen],
            self.positive_id[chosen],
            self.related,
            self.group,
            (lambda pairs, count, rng: draw(chosen[pairs], count, rng)) if draw else None,
        )

    def negatives(self, pairs: Int64Array, keys: Int64Array) -> BoolArray:
        """[n, M]: whether key id `keys` [M] (−1: no key) is a true negative of pair `pairs` [n].

        It is not if it is the pair's positive, another positive of the same anchor, or of the
        positive's group.
        """
        known = np.where(keys < 0, 0, keys)
        wanted = self.positive_id[pairs]
        same = wanted[:, None] == known
        groups = self.group[wanted][:, None]
        same |= (groups == self.group[known]) & (groups != 0)
        same |= self.related[self.anchor_id[pairs]][:, known].toarray() != 0
        return ~same & (keys >= 0)


@dataclass(frozen=True)
class PairSets:
    """Pairs of every kind for training, and later ones for the stage's metrics."""

    log: Log
    config: PairConfig
    seed: int

    def train(self, kind: Kind) -> Pairs:
        """Training pairs: from training days only, without held-out places."""
        return getattr(self, f"_{kind}")("train")

    def later(self, kind: Kind, part: Part) -> Pairs:
        """Pairs of the days of validation or test, by the same rule; all places."""
        return getattr(self, f"_{kind}")(part)

    def unseen(self, pairs: Pairs) -> BoolArray:
        """[N] whether the positive of a pair of places is new to training."""
        return ~(self.log.seen & self.log.usable)[pairs.positive_id]

    @cached_property
    def _for_training(self) -> BoolArray:
        """[E] events of training days at places that are not held out."""
        return self.log.training & ~self.log.held[self.log.item]

    # ------------------------------------------------------------- user–user

    def _uu(self, part: Part) -> Pairs:
        users = len(self.log.data.histories.users)
        none = np.zeros(users, np.int64)
        if self.config.uu == "overlap" and part == "train":
            chosen = self.log.chosen(self._for_training & self.log.behaves("order"))
            near = neighbours(_rare(chosen).T.tocsr(), self.config.neighbours, self.config.least)
            first, second = _both(near.nonzero(), self._generator(), self.config.limit)
            spans = self.log.train_spans
            return Pairs(
                "uu",
                _users("user", first, *spans),
                _users("user", second, *spans),
                first,
                second,
                _with_self(near + near.T),
                none,
            )
        early, late = self._periods(part)
        enough = self.config.min_events
        found = np.flatnonzero((_length(early) >= enough) & (_length(late) >= enough))
        found = _drawn(found, self._generator(), self.config.limit)
        return Pairs(
            "uu",
            _users("profile", found, *late),
            _users("visits", found, *early),
            found,
            found,
            sp.identity(users, np.float32, format="csr"),
            none,
        )

    def _periods(self, part: Part) -> tuple[tuple[Int64Array, Int64Array], ...]:
        """An earlier and a later event span [U] of each user, with no moment in both.

        Of training days both halves; of a later part its days and all before them, and halves
        for users whom nothing before it knows.
        """
        begin, cut = self.log.train_spans
        if part == "train":
            return self._halves(begin, cut)
        known = np.bincount(self.log.owner[self.log.validation], minlength=len(begin))
        end = cut + known
        if part == "test":
            cut, end = end, self.log.starts[1:]
        new = cut == begin
        early, late = self._halves(begin, end)
        return (
            (begin, np.where(new, early[1], cut)),
            (np.where(new, late[0], cut), end),
        )

    def _halves(
        self, begin: Int64Array, end: Int64Array
    ) -> tuple[tuple[Int64Array, Int64Array], tuple[Int64Array, Int64Array]]:
        ts = np.asarray(self.log.data.histories.ts)
        middle = (begin + end) // 2
        # Events of one moment stay on one side: the cut moves back to the first of them.
        for user in np.flatnonzero(end > begin):
            place = middle[user]
            if 0 < place < len(ts) and ts[place] > np.iinfo(np.int64).min:
                while place > begin[user] and ts[place - 1] == ts[place]:
                    place -= 1
                middle[user] = place
        return (begin, middle), (middle, end)

    # ----------------------------------------------------------- place–place

    def _pp(self, part: Part) -> Pairs:
        log, config, later = self.log, self.config, part != "train"
        poi = np.array(log.places.poi)
        # A view or brand pair needs no behaviour, so later ones are those of places held out.
        usable = poi & (log.asked(part) if later else log.usable)
        size = len(poi)
        style: tuple[PlaceStyle, PlaceStyle] = ("poi", "poi")
        related = sp.identity(size, np.float32, format="csr")
        if config.pp == "views":
            both = np.array(
                [bool(g and t) for g, t in zip(log.places.given, log.places.told, strict=True)]
            )
            first = np.flatnonzero(usable & both)
            first = _drawn(first, self._generator(), config.limit)
            second, style = first, ("given", "told")
        elif config.pp == "brand":
            first, second = _brand_pairs(self._brand, usable, self._generator(), config.limit)
        else:
            events = log.events_of(part) if later else self._for_training
            chosen = log.chosen(events, per_week=True)
            near = neighbours(chosen, config.neighbours, config.least)
            if later:  # one answer per question
                first = np.flatnonzero(np.diff(near.indptr))
                second = near.indices[near.indptr[first]].astype(np.int64)
                keep = _drawn(np.arange(len(first)), self._generator(), config.limit)
                first, second = first[keep], second[keep]
            else:
                first, second = _both(near.nonzero(), self._generator(), config.limit)
            related = _with_self(near + near.T)
        return Pairs(
            "pp",
            Side(style[0], item=first),
            Side(style[1], item=second),
            first,
            second,
            related,
            self._brand,
            self._near(first),
        )

    @cached_property
    def _brand(self) -> Int64Array:
        names = np.array(self.log.places.brand, object)
        codes = np.unique(names, return_inverse=True)[1].reshape(-1) + 1
        return np.where(names == "", 0, codes).astype(np.int64)

    def _near(self, anchor: Int64Array) -> Draw:
        """Places of the anchor's area in another category."""
        places = self.log.places
        leaf = np.array(places.leaf, object)
        areas = np.array(places.area, object)
        rows = np.flatnonzero(np.array(places.poi) & self.log.usable & (areas != ""))
        names, code = np.unique(areas[rows].astype(str), return_inverse=True)
        order = rows[np.argsort(code, kind="stable")]
        cuts = np.cumsum(np.bincount(code, minlength=len(names)))[:-1]
        members = dict(zip(names.tolist(), np.split(order, cuts), strict=True)) if len(rows) else {}

        def draw(pairs: Int64Array, count: int, rng: np.random.Generator) -> Int64Array:
            out = np.full((len(pairs), count), -1, np.int64)
            for place, row in enumerate(anchor[pairs]):
                near = members.get(places.area[row], np.zeros(0, np.int64))
                other = near[leaf[near] != places.leaf[row]]
                if len(other):
                    out[place] = rng.choice(other, count)
            return out

        return draw

    # ------------------------------------------------------------ user–place

    def _up(self, part: Part) -> Pairs:
        log, rows, later = self.log, self.log.data.impressions, part != "train"
        poi = np.array(log.places.poi)
        wanted = np.asarray(rows.order if self.config.up == "orders" else rows.click)
        item = np.asarray(rows.item).astype(np.int64)
        mine = np.asarray(rows.split) == SPLITS.index(part)
        owner = np.repeat(np.arange(len(rows.user)), np.diff(rows.offsets))
        take = (wanted > 0) & poi[item] & mine[owner]
        user, start, end = (
            np.asarray(c).astype(np.int64) for c in (rows.user, rows.start, rows.end)
        )
        known = (end > start) | np.array([bool(p) for p in log.profiles] or [False])[user]
        take &= known[owner]
        if not later:
            take &= ~log.held[item]
        chosen = np.flatnonzero(take)
        if later:
            chosen = _drawn(chosen, self._generator(), self.config.limit)
        else:
            newest = np.argsort(np.asarray(rows.ts)[owner[chosen]], kind="stable")
            chosen = np.sort(chosen[newest[-self.config.limit :]])
        request = owner[chosen]
        return Pairs(
            "up",
            Side("user", user=user[request], start=start[request], end=end[request]),
            Side("poi", item=item[chosen]),
            user[request],
            item[chosen],
            self._positives(later),
            self._brand,
            self._exposed(request),
        )

    def _positives(self, later: bool) -> sp.csr_matrix:
        """[U, 2 + N]: places that a user chose on training days; on all days for later pairs."""
        log, rows = self.log, self.log.data.impressions
        events = np.ones(len(log.item), bool) if later else log.training
        shown = rows.rows(np.arange(len(rows.user)) if later else rows.of("train"))
        owner = np.repeat(np.asarray(rows.user), np.diff(rows.offsets))[shown]
        clicked = np.asarray(rows.click)[shown] > 0
        user = np.concatenate([log.owner[events], owner[clicked]])
        item = np.concatenate([log.item[events], np.asarray(rows.item)[shown][clicked]])
        shape = (len(log.data.histories.users), len(log.held))
        return sp.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape=shape)

    def _exposed(self, request: Int64Array) -> Draw:
        """Places shown in the pair's request and not clicked."""
        rows, held = self.log.data.impressions, self.log.held

        def draw(pairs: Int64Array, count: int, rng: np.random.Generator) -> Int64Array:
            out = np.full((len(pairs), count), -1, np.int64)
            for place, index in enumerate(request[pairs]):
                span = slice(int(rows.offsets[index]), int(rows.offsets[index + 1]))
                shown = np.asarray(rows.item[span]).astype(np.int64)
                left = shown[(np.asarray(rows.click[span]) == 0) & ~held[shown] & (shown > 1)]
                if len(left):
                    out[place] = rng.choice(left, count)
            return out

        return draw

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


def _rare(chosen: sp.csr_matrix) -> sp.csr_matrix:
    """[U, I] without places of more than 1,000 users: they say little about any two of them, and
    cost their square."""
    common = np.asarray(chosen.sum(0)).reshape(-1) > _PLACE_USERS
    return chosen @ sp.diags((~common).astype(np.float32)) if common.any() else chosen


def _users(style: UserStyle, user: Int64Array, start: Int64Array, end: Int64Array) -> Side:
    return Side(style, user=user, start=start[user], end=end[user])


def _length(span: tuple[Int64Array, Int64Array]) -> Int64Array:
    return span[1] - span[0]


def _drawn(rows: Int64Array, rng: np.random.Generator, limit: int) -> Int64Array:
    if len(rows) <= limit:
        return rows
    return np.sort(rng.choice(rows, limit, replace=False))


def _both(
    pairs: tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]],
    rng: np.random.Generator,
    limit: int,
) -> tuple[Int64Array, Int64Array]:
    first, second = (np.asarray(side, np.int64) for side in pairs)
    keep = _drawn(np.arange(len(first)), rng, limit)
    return first[keep], second[keep]


def _with_self(matrix: sp.csr_matrix) -> sp.csr_matrix:
    return (matrix + sp.identity(matrix.shape[0], np.float32, format="csr")).tocsr()


def _brand_pairs(
    brand: Int64Array, usable: BoolArray, rng: np.random.Generator, limit: int
) -> tuple[Int64Array, Int64Array]:
    """Each place with a random other one of its brand."""
    first, second = [], []
    rows = np.flatnonzero(usable & (brand != 0))
    order = rows[np.argsort(brand[rows], kind="stable")]
    for members in np.split(order, np.flatnonzero(np.diff(brand[order])) + 1):
        if len(members) > 1:
            shift = rng.integers(1, len(members), len(members))
            first.append(members)
            second.append(members[(np.arange(len(members)) + shift) % len(members)])
    none = [np.zeros(0, np.int64)]
    return _both((np.concatenate(first or none), np.concatenate(second or none)), rng, limit)
