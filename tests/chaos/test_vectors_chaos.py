"""Vector tables under kill -9, in the middle of encoding, binding and compacting."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raysys.llm.compact import compact
from raysys.llm.embed import fill
from raysys.llm.inspect import check_table
from raysys.llm.keys import VectorIdentity, text_keys
from raysys.llm.parts import TableHeader
from raysys.llm.vectors import VectorTable
from raysys.llm.writer import TableWriter

pytestmark = pytest.mark.chaos

WIDTH = 4
IDENTITY = VectorIdentity(
    weights="00" * 32, pooling="mean", max_tokens=8, normalise=False, template="plain@1"
)
TEXTS = [f"text {number % 400}" for number in range(600)]  # 400 different ones
OWNERS = [f"i{number}" for number in range(len(TEXTS))]


def told(texts: list[str]) -> np.ndarray:
    """A vector that tells its text; says on stdout how many texts it was given."""
    print(len(texts), flush=True)
    time.sleep(0.01)
    return np.array([[float(text.split()[1])] * WIDTH for text in texts], np.float32)


def embed(table: str) -> None:
    """Encode and bind, as the embed command does."""
    keys = text_keys(IDENTITY, TEXTS)
    with TableWriter(table, TableHeader(width=WIDTH)) as writer:
        fill(writer, keys, pa.array(TEXTS), told, rows_per_part=8)
        present = np.ones(len(TEXTS), bool)
        writer.bind("item", "title", pa.array(OWNERS), keys, present, {}, IDENTITY)


def squeeze(table: str) -> None:
    """Compact again and again, into parts of other sizes."""
    for size in range(1, 10_000):
        compact(table, bytes_per_part=640 * (1 + size % 7) * 8)
        with TableWriter(table, TableHeader(width=WIDTH)) as writer:  # a small part to merge
            writer.append(text_keys(IDENTITY, [f"more {size}"]), np.full((1, WIDTH), size, "f4"))
        print(size, flush=True)


def start(what: str, table: Path) -> subprocess.Popen[str]:
    """`embed` or `squeeze` in a process of its own."""
    code = f"import test_vectors_chaos as t; t.{what}({str(table)!r})"
    here = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=here, stdout=subprocess.PIPE, text=True
    )


def killed(what: str, table: Path, lines: int, delay: float) -> list[int]:
    """Numbers that a run prints until it is killed, `delay` seconds after the first `lines`."""
    child = start(what, table)
    assert child.stdout is not None
    said = [int(child.stdout.readline()) for _ in range(lines)]
    time.sleep(delay)
    child.send_signal(signal.SIGKILL)
    said += [int(line) for line in child.communicate()[0].split()]
    assert child.returncode == -signal.SIGKILL
    return said


def finished(what: str, table: Path) -> list[int]:
    """Numbers that a run prints until it ends."""
    child = start(what, table)
    said = [int(line) for line in child.communicate()[0].split()]
    assert child.returncode == 0
    return said


def test_a_killed_embed_run_resumes_without_duplicate_and_without_gap(tmp_path: Path) -> None:
    table, encoded, stops = tmp_path / "t", 0, (1, 9, 13, 7, 5)
    for turn, stop in enumerate(stops):
        encoded += sum(killed("embed", table, stop, 0.004 * turn))
        report = check_table(table)
        assert report.ok, report.faults
    encoded += sum(finished("embed", table))
    # A kill loses what was encoded since the last part: at most two calls of 8 texts.
    assert 400 <= encoded <= 400 + 16 * len(stops)
    found = VectorTable(table)
    assert len(found) == 400
    vectors, there = found.field("item", "title", IDENTITY).gather(OWNERS)
    assert there.all()
    assert vectors[:, 0].tolist() == [number % 400 for number in range(len(TEXTS))]
    assert finished("embed", table) == []


def test_a_killed_compaction_loses_nothing(tmp_path: Path) -> None:
    table = tmp_path / "t"
    embed(str(table))
    reader = VectorTable(table)
    expected = np.array([number % 400 for number in range(len(TEXTS))], np.float32)
    for turn in range(6):
        killed("squeeze", table, 1 + turn % 2, 0.007 * turn)
        report = check_table(table)
        assert report.ok, report.faults
        for opened in (reader, VectorTable(table)):
            assert (opened.bound("item", "title", OWNERS)[:, 0] == expected).all()
    compact(table)
    assert len(VectorTable(table).parts) == 1
    assert check_table(table).ok
    assert not [name for name in os.listdir(table) if name.endswith(".tmp")]


def test_readers_that_open_during_compactions_see_every_vector(tmp_path: Path) -> None:
    table = tmp_path / "t"
    embed(str(table))
    keys = text_keys(IDENTITY, TEXTS)
    child = start("squeeze", table)
    assert child.stdout is not None
    try:
        for _ in range(30):  # each line is a compaction
            child.stdout.readline()
            assert (VectorTable(table).rows(keys) >= 0).all()
    finally:
        child.kill()
        child.communicate()
