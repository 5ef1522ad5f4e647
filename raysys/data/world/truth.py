"""Reading the hidden truth of a planted world. Only metrics and tests may look."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.data.dataset import Dataset
from raysys.errors import DataError


@dataclass(frozen=True)
class Truth:
    """Truth tables of a world folder, read on demand, part by part where `part` is given.

    Parts are the same shards of users as those of `impressions` and `events`.
    """

    path: Path

    def _table(self, name: str, part: int | None) -> pa.Table:
        files = sorted((self.path / "truth" / name).glob("*.parquet"))
        if part is not None:
            files = files[part : part + 1]
        if not files:
            raise DataError(f"{self.path / 'truth' / name}: missing; make the world again")
        return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])

    def rows(self, part: int | None = None) -> pa.Table:
        """impression_id, item_id, p_click (with position), p_order (given a click), oracle
        (p_click without position), joint (J), and term_* if the world was made with them."""
        return self._table("rows", part)

    def requests(self, part: int | None = None) -> pa.Table:
        """impression_id, prototype in force, unseen_combination, new_value."""
        return self._table("requests", part)

    def users(self, part: int | None = None) -> pa.Table:
        """user_id, cold, own_prototype and price_band (food), reader (news)."""
        return self._table("users", part)

    def context_map(self) -> pa.Table:
        """The hidden map: code, mealtime, place, weather, day, prototype."""
        return self._table("map", None)

    def prototypes(self) -> pa.Table:
        """The hidden laws: prototype, field, value, probability. Food only."""
        return self._table("prototypes", None)


def read_truth(path: Path | str) -> Truth:
    """The truth of the world folder at `path`.

    Raises:
        DataError: not a data set folder, or not one of a planted world.
    """
    dataset = Dataset(path)
    if not dataset.manifest.world:
        raise DataError(f"{path} is a log of real behaviour: it has no planted truth")
    return Truth(dataset.path)
