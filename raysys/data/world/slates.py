"""Candidate lists: drawn, thinned of doubles and closed items, and put in random order."""

import numpy as np


def thin(rng: np.random.Generator, drawn: np.ndarray, usable: np.ndarray, keep: int) -> np.ndarray:
    """[N, keep] distinct usable items of `drawn` [N, M] in random order, −1 where too few.

    The order comes from `rng` alone, so that it can tell nothing about the items.
    """
    drawn = np.where(usable, drawn, -1)
    drawn.sort(axis=1)
    spare = drawn < 0
    spare[:, 1:] |= drawn[:, 1:] == drawn[:, :-1]
    key = rng.random(drawn.shape, dtype=np.float32) + spare
    chosen = np.argsort(key, axis=1)[:, :keep]
    items = np.take_along_axis(drawn, chosen, axis=1)
    items[np.take_along_axis(spare, chosen, axis=1)] = -1
    return items


def gumbel_choice(rng: np.random.Generator, score: np.ndarray) -> np.ndarray:
    """[N] column drawn with probability softmax(score [N, C]); −inf is never drawn."""
    noise: np.ndarray = -np.log(
        rng.standard_exponential(score.shape, dtype=np.float32) + np.float32(1e-30)
    )
    chosen: np.ndarray = np.argmax(score + noise, axis=1)
    return chosen


class Memory:
    """What users did up to the last local midnight.

    Attributes:
        clicks: [n, items] clicks of each user on each item, counted up to 255.
        recent: [n, 32] ring of the items clicked last; `seen` [n] how many went through it.
        search, favourite: [n] family of the last search and favourite, −1 before the first.
    """

    SLOTS = 32

    def __init__(self, users: int, items: int) -> None:
        self.clicks = np.zeros((users, items), dtype=np.uint8)
        self.recent = np.zeros((users, self.SLOTS), dtype=np.int32)
        self.seen = np.zeros(users, dtype=np.int64)
        self.search = np.full(users, -1, dtype=np.int64)
        self.favourite = np.full(users, -1, dtype=np.int64)

    def remember(self, user: np.ndarray, item: np.ndarray) -> None:
        """Add one day's clicks, sorted by (user, time)."""
        cell, count = np.unique(user * self.clicks.shape[1] + item, return_counts=True)
        flat = self.clicks.reshape(-1)
        flat[cell] = np.minimum(flat[cell].astype(np.int64) + count, 255)
        today = np.bincount(user, minlength=len(self.seen))
        rank = np.arange(len(user)) - (np.cumsum(today) - today)[user]
        last = rank >= today[user] - self.SLOTS  # older ones of a long day would be overwritten
        slot = (self.seen[user] + rank) % self.SLOTS
        self.recent[user[last], slot[last]] = item[last]
        self.seen += today

    def draw(self, rng: np.random.Generator, user: np.ndarray, count: int) -> np.ndarray:
        """[N, count] items from the recent ones of `user` [N]; −1 for users without any."""
        filled = np.minimum(self.seen[user], self.SLOTS)[:, None]
        slot = (rng.random((len(user), count)) * filled).astype(np.int64)
        return np.where(filled > 0, self.recent[user[:, None], slot], -1)


def last_before(
    value: np.ndarray, told: np.ndarray, user: np.ndarray, carried: np.ndarray
) -> np.ndarray:
    """[N] latest earlier `value` with `told` of the same user within the day, else `carried[user]`.

    Rows are sorted by (user, time); a row does not see itself.
    """
    index = np.where(told, np.arange(len(user)), -1)
    latest = np.empty_like(index)
    if len(index):
        latest[0] = -1
        latest[1:] = np.maximum.accumulate(index)[:-1]
    same = (latest >= 0) & (user[latest] == user)
    result: np.ndarray = np.where(same, value[latest], carried[user])
    return result
