"""HKFR's stage 3: knowledge and a language model become the dated features of a ranker."""

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
from typer.testing import CliRunner

from raysys.cli.main import make_app
from raysys.data.feature_table import SCHEMA, read_dated, read_features
from raysys.errors import ConfigError, DataError
from raysys.hkfr.features import FeatureOptions, FeatureReader, Question
from raysys.hkfr.known import Knowledge
from raysys.hkfr.projection import Projection, load_projections, save_projections
from raysys.hkfr.prompts import Prompts
from raysys.hkfr.samples import Samples
from raysys.hkfr.scoring import Scorer, in_full
from raysys.llm.backbones import open_backbone
from raysys.llm.fresh import FreshModel, write_fresh_model
from raysys.llm.tokens import TextTokens
from raysys.recipes.hkfr_features import PROJECTION, build_features

DAY = date(2023, 5, 2)
KNOWN = pa.schema(
    [("user_id", pa.string()), ("text", pa.string()), ("key", pa.string()), ("cold", pa.bool_())]
)
SMALL = FeatureOptions(hidden=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untuned one, of random weights."""
    folder = tmp_path_factory.mktemp("hkfr") / "model"
    texts = [row["knowledge"] for row in planted_samples(8)]
    write_fresh_model(folder, FreshModel(layers=1, width=16, heads=2, vocab=300), texts)
    return f"dir:{folder}"


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return write_samples(tmp_path / "samples")


def known_rows(users: range, change: str = "") -> list[dict[str, Any]]:
    """Users, as in the planted samples, whose texts are their own; the first is cold."""
    return [
        dict(
            user_id=f"u{user:03d}",
            text=f"Profile of user {user}.\nordered {list(FOODS)[user % 4]}{change}",
            key=f"k{user}{change}",
            cold=user == 0,
        )
        for user in users
    ]


def know(root: Path, day: date, rows: list[dict[str, Any]]) -> Path:
    folder = root / f"date={day.isoformat()}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, KNOWN), folder / "knowledge.parquet")
    return root


def reader(model: str, samples: Path, **options: Any) -> FeatureReader:
    backbone = open_backbone(model)
    tokens = TextTokens(backbone.tokenizer(), 128)
    scorer = Scorer(backbone.causal_model(torch.device("cpu"), torch.float32), tokens.end, 0)
    opened = Samples.open(samples)
    chosen = FeatureOptions(**options)
    questions = [Question.of(opened, task) for task in chosen.tasks]
    return FeatureReader(scorer, Prompts(tokens), questions, chosen)


TEXTS = [row["text"] for row in known_rows(range(5))]


@torch.no_grad()
def test_features_are_the_answers_by_hand_and_the_last_hidden_state(
    model: str, samples: Path
) -> None:
    read = reader(model, samples)
    found = read(TEXTS)
    (question,) = read.questions
    assert question.instruction == "Which category will the user order next?"
    for row, text in enumerate(TEXTS):
        ids = read.prompts.prompt(text, question.instruction)
        scores = [in_full(read.scorer, ids, read.prompts.name(name)) for name in FOODS]
        log_sum = np.log(np.exp(scores).sum())
        np.testing.assert_allclose(found["hkfr.category"][row], scores - log_sum, atol=1e-4)
        states = read.scorer.model(
            input_ids=torch.tensor([ids]), output_hidden_states=True
        ).hidden_states[-1]
        np.testing.assert_allclose(found["hkfr.hidden"][row], states[0, -1], atol=1e-4)


def test_the_likeliest_stay_and_the_others_share_the_rest(model: str, samples: Path) -> None:
    whole = np.exp(reader(model, samples)(TEXTS)["hkfr.category"])
    cut = reader(model, samples, values="p", top=1, hidden=0)(TEXTS)
    assert list(cut) == ["hkfr.category"]
    for before, after in zip(whole, cut["hkfr.category"], strict=True):
        best = before.argmax()
        expected = np.full(4, (1 - before[best]) / 3)
        expected[best] = before[best]
        np.testing.assert_allclose(after, expected, atol=1e-5)


def test_the_prior_is_taken_off_before_it_is_a_distribution(model: str, samples: Path) -> None:
    plain = reader(model, samples)
    bare = plain([""])["hkfr.category"][0]
    raw = plain(TEXTS)["hkfr.category"] - 0.5 * bare
    expected = raw - np.log(np.exp(raw).sum(1, keepdims=True))
    found = reader(model, samples, prior_correct=0.5)(TEXTS)["hkfr.category"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_pca_keeps_what_varies_most_and_comes_back_from_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(60, 2)) * [5, 2] @ rng.normal(size=(2, 7)) + 3).astype(np.float32)
    pca = Projection.fit(x, 2, "pca", 0)
    short = pca(x)
    centred = x - x.mean(0)
    np.testing.assert_allclose((short**2).sum(), (centred**2).sum(), rtol=1e-4)
    assert short[:, 0].std() >= short[:, 1].std()
    np.testing.assert_allclose(np.corrcoef(short.T)[0, 1], 0, atol=1e-4)
    drawn = [Projection.fit(x, 3, "random", seed)(x) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2])
    assert Projection.fit(x, 99, "pca", 0)(x).shape == (60, 7)
    save_projections(tmp_path / "p", {"a.b": pca})
    np.testing.assert_array_equal(load_projections(tmp_path / "p")["a.b"](x), short)


def test_a_night_reads_only_what_is_new(model: str, samples: Path, tmp_path: Path) -> None:
    known, out = tmp_path / "known", tmp_path / "features"
    know(known, DAY, known_rows(range(12)))
    first = build_features(model, known, samples, out, SMALL)
    # The users of the training part fit the projection; their texts are not read twice.
    assert (first.dates, first.users, first.read, first.rows) == ((date(2023, 5, 1),), 12, 12, 36)
    assert first.widths == {"hkfr.category": 4, "hkfr.hidden": 4}
    names = ["hkfr.category", "hkfr.hidden", "hkfr.cold"]
    by_name = dict(zip(names, read_features(out, names), strict=True))
    day = np.full(2, (DAY - date(1970, 1, 1)).days)  # of the request: the day after the features'
    assert by_name["hkfr.cold"].at(["u000", "u001"], day).tolist() == [[1.0], [0.0]]
    found = by_name["hkfr.category"].at(["u000", "u001"], day)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)
    assert np.isnan(by_name["hkfr.category"].at(["u000", "u001"], day - 1)).all()

    again = build_features(model, known, samples, out, SMALL)
    assert (again.dates, again.kept_dates, again.read) == ((), 1, 0)
    rows = known_rows(range(10)) + known_rows(range(10, 12), " again")
    know(known, date(2023, 5, 3), rows)
    night = build_features(model, known, samples, out, SMALL)
    assert (night.dates, night.read, night.texts) == ((DAY,), 2, 12)
    # As if both had been read at once; what fits the projection is not read again on any day.
    whole = tmp_path / "whole"
    assert build_features(model, known, samples, whole, SMALL).read == 14
    for folder in ("date=2023-05-01", "date=2023-05-02"):
        one, other = (
            [
                row
                for row in read_dated(root / folder, SCHEMA).to_pylist()
                if "hidden" not in row["name"]
            ]
            for root in (out, whole)
        )
        assert [row.pop("source_id") for row in one] == [row.pop("source_id") for row in other]
        # Batches differ, and with them the last bits.
        values = [np.concatenate([row.pop("value") for row in part]) for part in (one, other)]
        np.testing.assert_allclose(*values, atol=1e-5)
        assert one == other


def test_the_projection_knows_training_users_alone(
    model: str, samples: Path, tmp_path: Path
) -> None:
    fitted = []
    for name, change in (("a", ""), ("b", " something else entirely")):
        rows = known_rows(range(12))
        held = {row["user_id"] for row in planted_samples() if row["split"] != "train"}
        for row in rows:
            if row["user_id"] in held:
                row |= dict(text=row["text"] + change, key=row["key"] + change)
        build_features(model, know(tmp_path / f"known-{name}", DAY, rows), samples,
                       tmp_path / name, SMALL)  # fmt: skip
        fitted.append((tmp_path / name / PROJECTION).read_bytes())
    assert fitted[0] == fitted[1]


def test_days_after_the_last_training_sample_do_not_fit_it(
    model: str, samples: Path, tmp_path: Path
) -> None:
    rows = planted_samples()
    for row in rows:
        row["ts"] = 1_682_899_200_000_000  # 2023-05-01
    table = pa.Table.from_pylist(rows, pq.read_schema(samples / "samples.parquet"))
    pq.write_table(table, samples / "samples.parquet")
    seal(samples)
    known = know(tmp_path / "known", DAY, known_rows(range(12)))
    with pytest.raises(DataError, match=r"no knowledge of users of .* up to its last training"):
        build_features(model, known, samples, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()
    know(known, date(2023, 5, 1), known_rows(range(6)))
    assert len(build_features(model, known, samples, tmp_path / "out", SMALL).dates) == 2


def test_other_features_in_the_folder_are_refused(
    model: str, samples: Path, tmp_path: Path
) -> None:
    known = know(tmp_path / "known", DAY, known_rows(range(6)))
    build_features(model, known, samples, tmp_path / "out", SMALL)
    with pytest.raises(ConfigError, match=r"other features; different: options.hidden \(4 → 3\)"):
        build_features(model, known, samples, tmp_path / "out", FeatureOptions(hidden=3))
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "note").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        build_features(model, known, samples, tmp_path / "else", SMALL)
    with pytest.raises(ConfigError, match=r"tasks=merchant: .* no candidate .* of category"):
        build_features(model, known, samples, tmp_path / "b", FeatureOptions(tasks=("merchant",)))


def test_texts_may_lie_apart_and_faults_are_named(tmp_path: Path) -> None:
    rows = known_rows(range(3))
    inline = Knowledge(know(tmp_path / "inline", DAY, rows)).of(DAY)
    apart = tmp_path / "apart"
    (apart / "texts").mkdir(parents=True)
    texts = pa.Table.from_pylist(rows, KNOWN).select(["key", "text"])
    pq.write_table(texts, apart / "texts" / "part.parquet")
    folder = know(apart, DAY, rows) / f"date={DAY.isoformat()}" / "knowledge.parquet"
    bound = pa.Table.from_pylist(rows, KNOWN).drop_columns("text")
    pq.write_table(bound, folder)
    found = Knowledge(apart).of(DAY)
    assert found.select(inline.column_names).equals(inline)
    pq.write_table(texts.slice(0, 2), apart / "texts" / "part.parquet")
    with pytest.raises(DataError, match=r"row 3: .*texts has no text k2"):
        Knowledge(apart).of(DAY)
    for change, told in {
        "cold": (dict(cold=None), "row 1, column cold: missing"),
        "user": (dict(user_id="u001"), "user u001 is there twice"),
    }.values():
        bad = know(tmp_path / "bad", DAY, [rows[0] | change, *rows[1:]])
        with pytest.raises(DataError, match=told):
            Knowledge(bad).of(DAY)
    with pytest.raises(DataError, match="knowledge of nobody"):
        Knowledge(know(tmp_path / "nobody", DAY, [])).of(DAY)
    with pytest.raises(DataError, match="holds no folder date="):
        Knowledge(tmp_path)


def test_the_command_tells_what_it_did(model: str, samples: Path, tmp_path: Path) -> None:
    known = know(tmp_path / "known", DAY, known_rows(range(6)))
    arguments = ["build", "hkfr-features", model, "hidden=0", "values=p", "--json"]
    folders = {"--knowledge": known, "--samples": samples, "--out": tmp_path / "out"}
    options = [str(part) for pair in folders.items() for part in pair]
    result = CliRunner().invoke(make_app("build"), [*arguments, *options], catch_exceptions=False)
    report = json.loads(result.stdout)
    assert (report["dates"], report["read"]) == (["2023-05-01"], 6)
    assert report["widths"] == {"hkfr.category": 4}
