"""Probes of frozen vectors, against a few lines of plain Python."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from raysys.errors import DataError
from raysys.homodistil.probes import agreement, glue, retrieval, spearman


def by_words(texts: Sequence[str]) -> np.ndarray:
    """Counts of the words a to j, of length 1; nothing known is a vector of its own."""
    counts = np.array([[t.split().count(w) for w in "abcdefghij"] + [0.01] for t in texts], "f4")
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_a_title_finds_its_text_and_ties_count_as_nearer() -> None:
    found = retrieval(["a", "b", "c"], ["a", "b b c", "c"], by_words)
    assert found == {"r@1": 1.0, "r@10": 1.0, "mrr": 1.0, "pool": 3.0}
    # Texts that are all alike: none is found first.
    tied = retrieval(["a", "b"], ["d", "d"], by_words)
    assert tied["r@1"] == 0 and tied["mrr"] == 0.5


def test_agreement_is_one_with_itself_and_rank_alone_counts() -> None:
    rng = np.random.default_rng(0)
    some = rng.normal(size=(40, 6)).astype("f4")
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    assert agreement(some, some) == pytest.approx(1)
    turned = some @ np.linalg.qr(rng.normal(size=(6, 6)))[0].astype("f4")
    assert agreement(turned, some) == pytest.approx(1, abs=1e-4)
    other = rng.normal(size=(40, 6)).astype("f4")
    assert abs(agreement(other, some)) < 0.2
    assert spearman(np.array([1.0, 2, 3]), np.array([10.0, 100, 1000])) == pytest.approx(1)
    assert spearman(np.ones(3), np.arange(3.0)) == 0


def test_glue_reads_its_tasks_and_learns_on_their_training_part(tmp_path: Path) -> None:
    (tmp_path / "STS-B").mkdir()
    rows = ["sentence1\tsentence2\tscore", "a b\ta b\t5.0", "a b\ta c\t2.5", "a b\td e\t0.0"]
    (tmp_path / "STS-B" / "dev.tsv").write_text("\n".join(rows) + "\n")
    (tmp_path / "SST-2").mkdir()
    for part in ("train", "dev"):
        told = ["sentence\tlabel"] + [f"{'a' if n % 2 else 'b'} c\t{n % 2}" for n in range(40)]
        (tmp_path / "SST-2" / f"{part}.tsv").write_text("\n".join(told) + "\n")
    (tmp_path / "CoLA").mkdir()
    for part in ("train", "dev"):
        told = [f"x\t{n % 2}\t\t{'e' if n % 2 else 'f'} g" for n in range(40)]
        (tmp_path / "CoLA" / f"{part}.tsv").write_text("\n".join(told) + "\n")
    found = glue(tmp_path, by_words, train_rows=30)
    assert {task: told["metric"] for task, told in found.items()} == {
        "STS-B": "spearman", "SST-2": "accuracy", "CoLA": "matthews",
    }  # fmt: skip
    assert [told["value"] for told in found.values()] == pytest.approx([1, 1, 1])
    assert found["SST-2"]["rows"] == 40
    with pytest.raises(DataError, match="none of the tasks"):
        glue(tmp_path / "none", by_words, train_rows=3)
    (tmp_path / "SST-2" / "dev.tsv").write_text("text\tlabel\nq\t1\n")
    with pytest.raises(DataError, match="sentence"):
        glue(tmp_path, by_words, train_rows=3)
