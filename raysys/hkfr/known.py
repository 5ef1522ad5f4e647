"""Knowledge by date, as the feature stage reads it (§2.2, §7).

    DIR/date=YYYY-MM-DD/*.parquet    user_id, key, cold, and text unless DIR/texts has it
    DIR/texts/*.parquet              key, text

K_u of day D is of events before D. key names the text; cold: the user had no event.
"""

from datetime import date
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.data.feature_table import dated_folders, read_dated
from raysys.errors import DataError

_TEXT = pa.schema([("key", pa.string()), ("text", pa.string())])
_BOUND = pa.schema([("user_id", pa.string()), ("key", pa.string()), ("cold", pa.bool_())])


class Knowledge:
    """A folder of knowledge, opened for reading.

    Raises:
        DataError: no folder of a date in it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.folders = dated_folders(path)

    def of(self, day: date) -> pa.Table:
        """user_id, key, cold and text of all users of a day; each user once.

        Raises:
            DataError: names file, column and row, or user, of the first fault.
        """
        folder = self.folders[day]
        inline = any(
            "text" in pq.read_schema(file).names for file in sorted(folder.glob("*.parquet"))
        )
        table = read_dated(folder, pa.unify_schemas([_BOUND, _TEXT]) if inline else _BOUND)
        if not len(table):
            raise DataError(f"{folder}: knowledge of nobody; delete the folder")
        users = table["user_id"].value_counts()
        twice = pc.index(pc.greater(users.field("counts"), 1), True).as_py()
        if twice >= 0:
            raise DataError(f"{folder}: user {users.field('values')[twice]} is there twice")
        if inline:
            return table
        place = pc.index_in(table["key"], value_set=self._texts["key"].combine_chunks())
        if place.null_count:
            row = pc.index(place.is_null(), True).as_py()
            raise DataError(
                f"{folder}: row {row + 1}: {self.path}/texts has no text {table['key'][row]}"
            )
        return table.append_column("text", self._texts["text"].take(place))

    @cached_property
    def _texts(self) -> pa.Table:
        return read_dated(self.path / "texts", _TEXT)
