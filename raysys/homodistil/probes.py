"""What vectors of a model are worth without training it further: GLUE tasks, retrieval, agreement.

All read the pooled vectors of frozen models: what a student is used for here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.data.loaders.reading import RAW_TSV, Dialect, read_text, require_file
from raysys.errors import DataError

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]  # N texts -> [N, D], rows of length 1
# Task -> columns of its sentences, column of its label, metric.
GLUE: dict[str, tuple[tuple[str, ...], str, str]] = {
    "STS-B": (("sentence1", "sentence2"), "score", "spearman"),
    "SST-2": (("sentence",), "label", "accuracy"),
    "MRPC": (("#1 String", "#2 String"), "Quality", "accuracy"),
    "RTE": (("sentence1", "sentence2"), "label", "accuracy"),
    "CoLA": (("sentence",), "label", "matthews"),
}
_COLA = ("source", "label", "star", "sentence")


def glue(folder: Path, encode: Encode, train_rows: int, seed: int = 0) -> dict[str, Any]:
    """Task → metric and figure on the dev part, of every task that `folder` holds.

    STS-B: Spearman of the cosines, nothing is learned. The others: a logistic regression on the
    vector, of pairs on (u, v, |u − v|, u·v), learned from `train_rows` drawn rows.

    Raises:
        DataError: no task in the folder, or a file without its columns.
    """
    found: dict[str, Any] = {}
    for task, (columns, label, metric) in GLUE.items():
        if not (folder / task).is_dir():
            continue
        told = _read(folder / task / "dev.tsv", columns, label)
        if task == "STS-B":
            a, b = (encode(told[name]) for name in columns)
            value = spearman((a * b).sum(1), np.array(told[label], np.float64))
            found[task] = {"metric": metric, "value": value, "rows": len(a)}
            continue
        learned = _read(folder / task / "train.tsv", columns, label)
        some = np.random.default_rng(seed).permutation(len(learned[label]))[:train_rows]
        few = {name: [values[n] for n in some] for name, values in learned.items()}
        value = _classified(few, told, columns, label, metric, encode)
        found[task] = {"metric": metric, "value": value, "rows": len(told[label])}
    if not found:
        raise DataError(f"{folder}: none of the tasks {', '.join(GLUE)} is in it")
    return found


def retrieval(titles: Sequence[str], bodies: Sequence[str], encode: Encode) -> dict[str, float]:
    """Whether a title finds its own text among all: R@1, R@10 and mrr; equal cosines count as
    nearer."""
    asked, pool = encode(titles), encode(bodies)
    rank = np.empty(len(asked), np.int64)
    for begin in range(0, len(asked), 512):
        near = asked[begin : begin + 512] @ pool.T
        own = near[np.arange(len(near)), np.arange(begin, begin + len(near))]
        rank[begin : begin + len(near)] = (near >= own[:, None]).sum(1)
    return {
        "r@1": float((rank <= 1).mean()),
        "r@10": float((rank <= 10).mean()),
        "mrr": float((1 / rank).mean()),
        "pool": float(len(pool)),
    }


def agreement(student: Vectors, teacher: Vectors, pairs: int = 20_000, seed: int = 0) -> float:
    """Spearman of the cosines of drawn pairs of texts, student against teacher."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, len(student), (2, pairs))
    keep = a != b
    a, b = a[keep], b[keep]
    return spearman((student[a] * student[b]).sum(1), (teacher[a] * teacher[b]).sum(1))


def spearman(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Rank correlation; 0 where one of them is constant."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def _classified(
    learned: dict[str, list[str]],
    told: dict[str, list[str]],
    columns: tuple[str, ...],
    label: str,
    metric: str,
    encode: Encode,
) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    train, test = (_features([encode(part[name]) for name in columns]) for part in (learned, told))
    model = LogisticRegression(max_iter=2000).fit(train, learned[label])
    score = accuracy_score if metric == "accuracy" else matthews_corrcoef
    return float(score(told[label], model.predict(test)))


def _features(vectors: list[Vectors]) -> Vectors:
    if len(vectors) == 1:
        return vectors[0]
    u, v = vectors
    return np.concatenate([u, v, np.abs(u - v), u * v], 1)


def _read(path: Path, columns: tuple[str, ...], label: str) -> dict[str, list[str]]:
    cola = path.parent.name == "CoLA"
    dialect = RAW_TSV if cola else Dialect(delimiter="\t", quoted=False, header=True)
    source = read_text(require_file(path), dialect, _COLA if cola else None)
    return {name: source.required(name).to_pylist() for name in (*columns, label)}
