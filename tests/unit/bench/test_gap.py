"""The gap bench: its share is the arithmetic of its own figures; a second call trains nothing."""

from pathlib import Path

import numpy as np
import pytest

from bench.gap import run

TINY = """
model: {embedding_dim: 4, attention_hidden: [8], hidden: [8], history_length: 10}
batch_size: 16
train: {epochs: 1}
"""


@pytest.mark.slow
def test_share_and_second_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    given = dict(
        config=str(tmp_path / "tiny.yaml"), users=60, days=20, seeds=2, out=str(tmp_path / "out")
    )
    first = run(**given)
    models = sorted((tmp_path / "out").glob("seed-*/model.safetensors"))
    assert len(models) == 2
    assert models[0].read_bytes() != models[1].read_bytes()
    base, oracle = first["baselines"]["popularity"], first["oracle"]
    share = (first["model"]["mean"] - base) / (oracle - base)
    assert first["closed from popularity"]["share"] == pytest.approx(share, abs=1e-3)
    low, high = first["closed from popularity"]["seeds"]
    assert low < first["closed from popularity"]["share"] < high
    assert np.isfinite(first["closed from gbdt_pointwise"]["users"]).all()
    times = [path.stat().st_mtime_ns for path in models]
    assert run(**given) == first
    assert [path.stat().st_mtime_ns for path in models] == times
