"""The benches of HomoDistil's costs and probes, small: they run, and give what they say."""

from pathlib import Path

import pytest
from distil_toys import distil, root

from bench import homodistil_cost, homodistil_probes
from raysys.errors import ArtifactError, ConfigError
from raysys.llm.fresh import FreshModel

__all__ = ["root"]  # the fixture


@pytest.mark.slow
def test_costs_are_ratios_of_medians(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homodistil_cost, "OWN", FreshModel(layers=1, width=48, heads=6, vocab=300))
    found = homodistil_cost.run(
        encoder=f"dir:{root / 'encoder'}", texts=60, words=8, steps=6, rounds=1, max_tokens=24,
        parts=("embeddings", "compact"),
    )  # fmt: skip
    for ratio, both, (a, b) in (
        ("embeddings_ratio", "embeddings_per_s", ("student", "teacher")),
        ("compact_ratio", "training_tokens_per_s", ("compact", "hard")),
    ):
        assert found[ratio] == pytest.approx(found[both][a] / found[both][b]) and found[ratio] > 0
    assert "two_workers_ratio" not in found
    with pytest.raises(ConfigError, match="parts: no speed"):
        homodistil_cost.run(parts=("speed",))


@pytest.mark.slow
def test_a_student_is_told_beside_its_teacher(root: Path, tmp_path: Path) -> None:
    over = ["unit=sentences", "loss.similarity=1.0", "train.max_steps=12"]
    distil(root, tmp_path / "run", "encoder", *over)
    (tmp_path / "glue" / "STS-B").mkdir(parents=True)
    rows = ["sentence1\tsentence2\tscore", "sea wind\tsea wind\t5", "sea\tboat\t2", "sail\trope\t1"]
    (tmp_path / "glue" / "STS-B" / "dev.tsv").write_text("\n".join(rows) + "\n")
    spec, teacher = f"dir:{tmp_path / 'run' / 'hf'}", f"dir:{root / 'encoder'}"
    found = homodistil_probes.run(
        student=spec, teacher=teacher, glue=str(tmp_path / "glue"), max_tokens=24
    )
    told = found["glue"]["STS-B"]
    assert told["kept"] == pytest.approx(told["student"] / told["teacher"])
    with pytest.raises(ArtifactError, match="names another teacher"):
        homodistil_probes.run(student=spec, teacher=f"dir:{root / 'bert'}", glue="x")
    with pytest.raises(ConfigError, match="give glue=FOLDER, data=CORPUS or both"):
        homodistil_probes.run(student=spec, teacher=teacher)
