"""The recipe llm/instruct end to end on planted samples, and the folder it reads."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hkfr_language import FOODS, planted_samples, seal, write_samples
from hypothesis import given, settings
from hypothesis import strategies as st
from training_toy import toy_ray

from raysys.artifacts.run import verify_run
from raysys.data.feature_table import read_features
from raysys.errors import DataError, RaysysError
from raysys.hkfr.samples import Samples
from raysys.options import resolve
from raysys.recipes.hkfr_features import build_features
from raysys.recipes.registry import ready, recipe_of, run
from raysys.training import InProcessReporter, InterruptedRunError

OPTIONS = [
    "backbone={layers: 2, width: 32, heads: 1, vocab: 400}", "max_tokens=96", "row_tokens=96",
    "batch_rows=6", "train.lr=0.01", "train.warmup_steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return Samples.open(write_samples(tmp_path_factory.mktemp("planted") / "s"))


class Stopper(InProcessReporter):
    """Asks to stop after some steps."""

    def __init__(self, after: int) -> None:
        super().__init__(show=False)
        self.left = after

    def stop_requested(self) -> bool:
        self.left -= 1
        return self.left < 0


def config(data: Path, *options: str) -> Any:
    return resolve(recipe_of("llm/instruct"), None, [*OPTIONS, *options], {"data": str(data)})


def train(data: Path, out: Path, *options: str, **how: Any) -> dict[str, Any]:
    return run(config(data, *options), out, show_progress=False, **how).result


# --- the folder of samples -----------------------------------------------------------------------


def test_samples_come_by_split_and_task_and_a_limit_keeps_its_choice(tmp_path: Path) -> None:
    rows = planted_samples()
    samples = Samples.open(write_samples(tmp_path / "s"))
    wanted = [row["answer"] for row in rows if (row["split"], row["task"]) == ("test", "category")]
    assert [sample.answer for sample in samples.of("test", task="category")] == wanted
    some, more = samples.of("train", 5), samples.of("train", 9)
    assert len(some) == 5 and set(some) < set(more) <= set(samples.of("train"))
    assert samples.card.id == Samples.open(tmp_path / "s").card.id
    assert samples.card.counts == {"train": 72, "valid": 24, "test": 24}


@settings(max_examples=30)
@given(shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_lessons_are_those_of_the_task_and_a_share_of_the_others(
    planted: Samples, shares: tuple[float, float]
) -> None:
    rows = [row for row in planted_samples() if row["split"] == "train"]
    small, large = (planted.lessons("category", share) for share in sorted(shares))
    assert set(small) <= set(large) <= set(planted.of("train"))
    for lessons, share in zip((small, large), sorted(shares), strict=True):
        others = [lesson for lesson in lessons if lesson.task != "category"]
        assert len(lessons) - len(others) == len(rows) / 2
        assert abs(len(others) - share * len(rows) / 2) <= 12  # of 36
    assert planted.lessons("category", 1.0) == planted.of("train")
    assert planted.lessons("category", 0.0) == planted.of("train", task="category")


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("answer", "", "samples.parquet: row 3, column answer: empty"),
        ("knowledge", None, "row 3, column knowledge: empty"),
        ("split", "dev", "row 3, column split: none of train, valid, test"),
        ("sample_id", "0-category", "row 3, column sample_id: there twice"),
    ],
)
def test_a_bad_sample_is_named(tmp_path: Path, column: str, value: Any, told: str) -> None:
    rows = planted_samples(4)
    rows[2][column] = value
    with pytest.raises(DataError, match=told):
        Samples.open(write_samples(tmp_path / "s", rows))


def test_a_folder_that_is_not_whole_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        Samples.open(tmp_path / "none")
    folder = write_samples(tmp_path / "s")
    (folder / "vocabulary.json").write_text('{"category": ["thai", "thai"]}')
    with pytest.raises(DataError, match=r"vocabulary\.json: damaged"):
        Samples.open(folder)
    seal(folder)
    with pytest.raises(DataError, match="'thai' is there twice"):
        Samples.open(folder)
    (folder / "vocabulary.json").write_text('{"category": "thai"}')
    seal(folder)
    with pytest.raises(DataError, match=r"vocabulary\.json: category"):
        Samples.open(folder)
    table = pq.read_table(folder / "samples.parquet")
    pq.write_table(table.drop_columns(["task"]), folder / "samples.parquet")
    (folder / "vocabulary.json").write_text("{}")
    seal(folder)
    with pytest.raises(DataError, match="column task is missing"):
        Samples.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        Samples.open(folder)


def test_nothing_to_learn_or_to_rank_is_told_before_training(tmp_path: Path) -> None:
    rows = [row for row in planted_samples() if row["split"] != "train"]
    with pytest.raises(DataError, match="no samples of the train part"):
        ready(config(write_samples(tmp_path / "a", rows)))
    folder = write_samples(tmp_path / "b")
    with pytest.raises(DataError, match=r"other_tasks=0\.5: .* no training samples of brand"):
        ready(config(folder, "task=brand", "other_tasks=0.5"))
    with pytest.raises(DataError, match="task=brand"):
        ready(config(folder, "task=brand"))
    with pytest.raises(RaysysError, match="512 positions"):
        ready(config(folder, "max_tokens=600", "row_tokens=600"))


# --- training ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_tuned_model_names_the_planted_category(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = write_samples(tmp_path / "s", planted_samples(200))
    train(data, tmp_path / "run", "train.epochs=20", "train.lr=0.005", "train.warmup_steps=20")
    verify_run(tmp_path / "run")
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["before"]["category_hr@5"] == 1.0  # of four
    assert found["after"]["answer_loss"] < 0.1 * found["before"]["answer_loss"]
    assert found["after"]["category_ndcg@5"] > 0.9 > 0.7 > found["before"]["category_ndcg@5"]
    assert (found["ranked_samples"], found["candidates"], found["prompts_cut"]) == (40, 4, 0)
    AutoTokenizer.from_pretrained(tmp_path / "run" / "hf")
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "hf")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_stopped_and_resumed_is_bitwise_undisturbed(tmp_path: Path, method: str) -> None:
    data = write_samples(tmp_path / "s")
    options = [
        "train.max_steps=4", f"tuning.method={method}",
        "tuning.lora={rank: 4, dropout: 0.1, targets: attention}",
    ]  # fmt: skip
    whole = train(data, tmp_path / "whole", *options)
    with pytest.raises(InterruptedRunError):
        train(data, tmp_path / "broken", *options, reporter=Stopper(2))
    again = train(data, tmp_path / "broken", *options)
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert again["metrics"] == whole["metrics"]


@pytest.mark.slow
def test_an_adapter_is_saved_apart_and_merges_to_the_same(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    data = write_samples(tmp_path / "s")
    options = ["train.max_steps=6", "tuning.method=lora", "tuning.lora={rank: 4, dropout: 0.0}"]
    train(data, tmp_path / "merged", *options)
    train(data, tmp_path / "apart", *options, "tuning.save=adapter")
    ids = torch.arange(20)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "hf")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "apart" / "hf")
    plain = base(ids).logits
    apart = PeftModel.from_pretrained(base, tmp_path / "apart" / "adapter")
    torch.testing.assert_close(apart(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, merged(ids).logits, atol=1e-3)


@pytest.mark.slow
def test_two_ray_workers_learn_what_one_process_learns(tmp_path: Path) -> None:
    data = write_samples(tmp_path / "s")
    options = ["train.max_steps=3", "train.optimizer=sgd", "rank_limit=7"]
    one = train(data, tmp_path / "here", *options)
    with toy_ray():
        for parallel in ("replicate", "fsdp"):
            two = train(
                data, tmp_path / parallel, *options, "train.workers=2", f"train.parallel={parallel}"
            )
            assert two["step"] == 3
            for part in ("before", "after"):
                assert two["metrics"][part] == pytest.approx(one["metrics"][part], rel=1e-3)
            verify_run(tmp_path / parallel)


@pytest.mark.slow
def test_features_of_a_tuned_model_know_what_unseen_people_like(tmp_path: Path) -> None:
    data = write_samples(tmp_path / "s", planted_samples(200))
    options = ("train.epochs=20", "train.lr=0.005", "train.warmup_steps=20")
    train(data, tmp_path / "run", *options, "tuning.method=lora", "tuning.save=adapter")
    users = {row["user_id"]: row for row in planted_samples(200) if row["task"] == "category"}
    folder = tmp_path / "known" / "date=2023-05-02"
    folder.mkdir(parents=True)
    known = {
        "user_id": list(users),
        "key": list(users),
        "text": [row["knowledge"] for row in users.values()],
        "cold": [False] * len(users),
    }
    pq.write_table(pa.table(known), folder / "part.parquet")
    build_features(str(tmp_path / "run"), folder.parent, data, tmp_path / "features")
    (found,) = read_features(tmp_path / "features", ["hkfr.category"])
    held = [user for user, row in users.items() if row["split"] == "test"]
    day = (date(2023, 5, 2) - date(1970, 1, 1)).days
    best = found.at(held, np.full(len(held), day)).argmax(1)
    right = [list(FOODS)[b] == users[u]["answer"] for b, u in zip(best, held, strict=True)]
    assert np.mean(right) > 0.8
