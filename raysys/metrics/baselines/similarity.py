"""Cosines between a candidate and the newest items of the history."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from raysys.data.contexts import FIRST
from raysys.data.features import training_item_counts
from raysys.data.prepared import Prepared
from raysys.metrics.baselines.rows import Rows
from raysys.metrics.blocks import Floats, Ints

Vectors: TypeAlias = NDArray[np.float32] | sparse.csr_matrix

NEWEST = 50
_TEXT_FIELDS = ("name", "title", "abstract", "text")
_PAIRS_AT_ONCE = 2_000_000
_DOTS_AT_ONCE = 50_000


@dataclass(frozen=True)
class Cosines:
    """mean, max: [R] over the newest 50 history items that are known; 0 where there is none."""

    mean: Floats
    max: Floats


def tfidf_vectors(data: Prepared) -> sparse.csr_matrix | None:
    """[2 + items, terms] rows of length 1; terms and their frequencies from training items only.

    None where the items of the training split have no text.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    items = data.dataset.table("items", list(_TEXT_FIELDS))
    filled = [pc.fill_null(items[name].combine_chunks(), "") for name in _TEXT_FIELDS]
    texts = pc.binary_join_element_wise(*filled, " ").to_pylist()
    seen = training_item_counts(data)[FIRST:] > 0
    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
    try:
        vectorizer.fit([text for text, known in zip(texts, seen, strict=True) if known])
    except ValueError:  # sklearn's word for an empty vocabulary
        return None
    matrix = vectorizer.transform(texts)
    return sparse.vstack([sparse.csr_matrix((FIRST, matrix.shape[1]), dtype=np.float32), matrix],
                         format="csr")  # fmt: skip


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, D] -> the same with rows of length 1; zero rows stay zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def history_cosines(data: Prepared, vectors: Vectors, rows: Rows) -> Cosines:
    """vectors: [2 + items, D] rows of length 1 or 0, dense or sparse."""
    begin = np.maximum(rows.start, rows.end - NEWEST)
    ends = np.cumsum(rows.end - begin)
    mean, high = np.zeros(len(rows)), np.zeros(len(rows))
    first = 0
    while first < len(rows):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")))
        part = slice(first, last)
        mean[part], high[part] = _chunk(data, vectors, rows.item[part], begin[part], rows.end[part])
        first = last
    return Cosines(mean, high)


def _chunk(
    data: Prepared, vectors: Vectors, item: Ints, begin: Ints, end: Ints
) -> tuple[Floats, Floats]:
    size = end - begin
    row = np.repeat(np.arange(item.size), size)
    event = np.repeat(begin - (np.cumsum(size) - size), size) + np.arange(size.sum())
    past = data.histories.item[event].astype(np.int64)
    known = past >= FIRST
    row, past = row[known], past[known]
    # The same two items meet many times; each pair is multiplied once.
    width = vectors.shape[0]
    pairs, back = np.unique(item[row] * width + past, return_inverse=True)
    cosine = _dots(vectors, pairs // width, pairs % width)[back]
    total = np.bincount(row, weights=cosine, minlength=item.size)
    high = np.full(item.size, -np.inf)
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    if row.size:
        high[row[starts]] = np.maximum.reduceat(cosine, starts)
    count = np.bincount(row, minlength=item.size)
    return total / np.maximum(count, 1), np.where(count > 0, high, 0.0)


def _dots(vectors: Vectors, left: Ints, right: Ints) -> Floats:
    out = np.empty(left.size)
    for first in range(0, left.size, _DOTS_AT_ONCE):
        part = slice(first, first + _DOTS_AT_ONCE)
        a: Any = vectors[left[part]]
        b: Any = vectors[right[part]]
        if isinstance(vectors, np.ndarray):
            out[part] = np.einsum("pd,pd->p", a, b)
        else:
            out[part] = np.asarray(a.multiply(b).sum(axis=1)).ravel()
    return out
