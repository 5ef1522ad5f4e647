"""Files larger than memory, piece by piece; a fault still names the row of the file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq

from raysys.data.loaders.reading import CSV, Source, csv_parsing, nearest, require_file
from raysys.errors import DataError

_ROWS = 1 << 20


def parquet_pieces(path: Path, columns: Sequence[str], rows: int = _ROWS) -> Iterator[Source]:
    """A Parquet file in pieces of at most `rows` rows.

    Raises:
        DataError: missing, truncated, or without one of `columns`.
    """
    require_file(path)
    start = 0
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        for name in columns:
            if name not in names:
                raise DataError(f"{path}: no column {name!r}" + nearest(name, names))
        for batch in file.iter_batches(rows, columns=list(columns)):
            yield Source(path, pa.Table.from_batches([batch]), start=start)
            start += len(batch)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: unreadable Parquet file ({error})") from error


def csv_pieces(path: Path) -> Iterator[Source]:
    """A CSV file with a header in pieces of some megabytes; all columns are text.

    Raises:
        DataError: see `read_text`.
    """
    start = 0
    with csv_parsing(path, CSV) as options, pv.open_csv(path, **options) as reader:
        for batch in reader:
            yield Source(path, pa.Table.from_batches([batch]), CSV, start=start)
            start += len(batch)
