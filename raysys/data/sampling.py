"""Training loader: global batches of impressions by random access, in disjoint parts.

`batch(epoch, step, part, parts)` depends on nothing but its arguments and the seed, so that a
resumed run reads exactly what the undisturbed one would have read, without replaying anything.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from raysys.data.batch import Pointers, pad_rows
from raysys.data.prepared import Prepared
from raysys.errors import DataError

Batch = TypeVar("Batch")


def pointers_of(data: Prepared, chosen: npt.NDArray[np.int64], *, labels: bool = True) -> Pointers:
    """Pointers of whole impressions with all their candidates, padded to the longest list."""
    rows = data.impressions
    counts = rows.offsets[chosen + 1] - rows.offsets[chosen]
    flat = rows.rows(chosen)
    return Pointers(
        start=rows.start[chosen],
        end=rows.end[chosen],
        ts=rows.ts[chosen],
        context=rows.context[chosen],
        codec=data.codec,
        candidates=pad_rows(rows.item[flat].astype(np.int64), counts),
        clicks=pad_rows(rows.click[flat].astype(np.float32), counts) if labels else None,
        orders=pad_rows(rows.order[flat].astype(np.float32), counts) if labels else None,
        users=data.users_of(chosen),
        days=rows.days(chosen),
    )


class ImpressionLoader(Generic[Batch]):
    """Batches of training impressions.

    Args:
        data: the prepared data set.
        collator: makes a batch of pointers.
        batch_size: impressions (candidates="all") or clicks (candidates="sampled") in one
            GLOBAL batch, over all workers.
        seed: of the order and the negatives.
        candidates: "all" gives whole impressions; "sampled" gives, for each click, the click in
            column 0 and `negatives` non-clicked candidates of the same impression, padded where
            there are fewer.
        split, limit: which impressions, and at most how many of them (the newest are kept).

    Raises:
        DataError: the split is empty or its labels are constant.
    """

    def __init__(
        self,
        data: Prepared,
        collator: Callable[[Pointers], Batch],
        *,
        batch_size: int,
        seed: int,
        candidates: Literal["all", "sampled"] = "all",
        negatives: int = 4,
        split: str = "train",
        limit: int | None = None,
    ) -> None:
        self.data = data
        self.collator = collator
        self.batch_size = batch_size
        self.seed = seed
        self.negatives = negatives
        rows = data.impressions
        chosen = rows.of(split)
        if limit is not None and len(chosen) > limit:
            chosen = np.sort(chosen[np.argsort(rows.ts[chosen], kind="stable")[-limit:]])
        flat = rows.rows(chosen)
        clicks = int(rows.click[flat].sum())
        if clicks == 0 or clicks == len(flat):
            raise DataError(
                f"{data.dataset.path}: split {split} has {len(flat)} candidates, {clicks} clicked: "
                "constant labels teach nothing; check the label column and the negatives"
            )
        self.sampled = candidates == "sampled"
        if self.sampled:
            clicked = flat[rows.click[flat] == 1]
            owner = np.repeat(chosen, rows.offsets[chosen + 1] - rows.offsets[chosen])
            self._owner = owner[rows.click[flat] == 1]
            self._unit = clicked
            # A list on which everything was clicked offers no negative to learn from.
            total = np.concatenate([[0], np.cumsum(rows.click, dtype=np.int64)])[rows.offsets]
            full = (np.diff(total) == np.diff(rows.offsets))[self._owner]
            self._owner, self._unit = self._owner[~full], clicked[~full]
        else:
            self._unit = chosen
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    @property
    def samples(self) -> int:
        """Impressions or clicks in one epoch."""
        return len(self._unit)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in one epoch; the last may be smaller."""
        return -(-self.samples // self.batch_size)

    def batch(self, epoch: int, step: int, part: int = 0, parts: int = 1) -> Batch | None:
        """Part `part` of `parts` of global batch `step` of `epoch`; None if nothing is left."""
        order = self._order
        if order is None or order[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._order = order = (epoch, generator.permutation(self.samples))
        picked = order[1][step * self.batch_size : (step + 1) * self.batch_size]
        if len(picked[part::parts]) == 0:
            return None
        # Drawn for the global batch, so equal for any parts.
        generator = self._generator(2, epoch, step)
        draw = generator.integers(2**63, size=len(picked))[part::parts]
        if self.sampled:
            pointers = self._sampled(picked, epoch, step, slice(part, None, parts))
        else:
            mine = self._unit[picked[part::parts]]
            pointers = pointers_of(self.data, mine)
        return self.collator(replace(pointers, draw=draw))

    def _generator(self, purpose: int, epoch: int, step: int) -> np.random.Generator:
        counter = [0, 0, epoch, step]
        return np.random.Generator(np.random.Philox(key=[self.seed, purpose], counter=counter))

    def _sampled(
        self, picked: npt.NDArray[np.int64], epoch: int, step: int, part: slice
    ) -> Pointers:
        """Clicks with sampled negatives; drawn for the global batch, so equal for any parts."""
        rows = self.data.impressions
        generator = self._generator(1, epoch, step)
        size = int(np.diff(rows.offsets).max())
        keys = generator.random((len(picked), size))[part]
        mine = picked[part]
        owner = self._owner[mine]
        begin = rows.offsets[owner][:, None] + np.arange(size)
        inside = begin < rows.offsets[owner + 1][:, None]
        begin = np.where(inside, begin, 0)
        keys = np.where(inside & (rows.click[begin] == 0), keys, 2.0)
        width = min(self.negatives, size)
        best = np.argpartition(keys, width - 1, axis=1)[:, :width]
        drawn = np.take_along_axis(keys, best, 1) < 2.0
        items = np.where(drawn, rows.item[np.take_along_axis(begin, best, 1)], 0)
        candidates = np.concatenate([rows.item[self._unit[mine]][:, None], items], axis=1)
        clicks = np.zeros(candidates.shape, np.float32)
        clicks[:, 0] = 1.0
        return Pointers(
            start=rows.start[owner],
            end=rows.end[owner],
            ts=rows.ts[owner],
            context=rows.context[owner],
            codec=self.data.codec,
            candidates=candidates.astype(np.int64),
            clicks=clicks,
            orders=np.zeros(candidates.shape, np.float32),
            users=self.data.users_of(owner),
            days=rows.days(owner),
        )
