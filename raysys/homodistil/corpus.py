"""Documents of a data set: what is read while a student becomes thin."""

from pathlib import Path

from raysys.data.dataset import Dataset
from raysys.errors import DataError


def open_corpus(path: str | Path) -> Dataset:
    """A data set with documents.

    Raises:
        DataError: it has none.
    """
    dataset = Dataset(path)
    if not dataset.has("documents"):
        raise DataError(
            f"{path}: no documents in it; import texts with `raysys data import corpus`"
        )
    return dataset


def has_part(dataset: Dataset, part: str) -> bool:
    """Whether any document is of that part."""
    return part in set(dataset.table("documents", ["split"])["split"].to_pylist())


def texts_of(dataset: Dataset, part: str) -> list[str]:
    """Documents of a part, title first.

    Raises:
        DataError: there is none.
    """
    table = dataset.table("documents", ["split", "title", "text"]).to_pylist()
    found = [
        f"{row['title']}. {row['text']}" if row["title"] else row["text"]
        for row in table
        if row["split"] == part
    ]
    if not found:
        raise DataError(f"{dataset.path}: no documents of the {part} part")
    return found
