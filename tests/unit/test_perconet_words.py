"""`news/perconet` over words (`encoder: mhsa | cnn`) instead of frozen sentence vectors."""

from collections.abc import Iterator
from pathlib import Path

import newspaper as paper
import numpy as np
import pytest
import torch

from raysys.artifacts.predictor import Predictor
from raysys.data.contexts import FIRST
from raysys.data.dataset import Dataset
from raysys.data.prepared import Prepared, prepare
from raysys.data.sampling import pointers_of
from raysys.errors import ArtifactError, ConfigError, DataError
from raysys.news.words import (
    OTHER,
    PADDING,
    WordOptions,
    WordTable,
    fit_words,
    pretrained_vectors,
    words_of,
)
from raysys.options import resolve
from raysys.perconet.news import WordNewsEncoder
from raysys.recipes.catalogue import build_catalogue
from raysys.recipes.registry import recipe_of, run

WORDS = ["model.words.width=12", "model.words.title=8", "model.words.abstract=10"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(Dataset(paper.write(tmp_path_factory.mktemp("words") / "data")))


def test_words_are_lower_case_and_normalised() -> None:
    told = "Ｔhe U.S. Mayor's $5 bill — why?"
    assert words_of(told) == ["the", "u", "s", "mayor's", "$", "5", "bill", "why", "?"]
    assert words_of(None) == words_of(" — ") == []


def test_words_are_those_of_training_news_and_rare_ones_are_one(data: Prepared) -> None:
    options = WordOptions(title=6, abstract=9)
    table = fit_words(data, options, ("title", "abstract"))
    assert table.words == sorted(set(table.words))
    assert "person3" in table.words and "news" in table.words
    # Each title has a number of its own: too rare.
    assert not any(word.isdigit() and int(word) > 3 for word in table.words)
    title = table.tokens["title"]
    assert title.shape == (FIRST + paper.NEWS, 6)
    assert (title[:FIRST] == PADDING).all()
    row = title[FIRST + 10]
    text = data.dataset.table("items")["title"][10].as_py()
    told = [table.words[n - OTHER - 1] if n > OTHER else "?" for n in row if n]
    assert told == [w if w in table.words else "?" for w in words_of(text)[:6]]
    assert (table.tokens["abstract"][FIRST::7] == PADDING).all()
    # What only later news say is not known.
    late = {w for n in range(paper.NEWS - paper.LATE, paper.NEWS)
            for w in words_of(data.dataset.table("items")["title"][n].as_py())}  # fmt: skip
    assert {str(n) for n in range(paper.NEWS - paper.LATE, paper.NEWS)} <= late - set(table.words)
    with pytest.raises(ConfigError, match="no word occurs 9999 times"):
        fit_words(data, WordOptions(min_count=9999), ("title",))


def test_pretrained_vectors_and_bad_files(tmp_path: Path) -> None:
    table, file = WordTable(["alpha", "beta"], {}), tmp_path / "glove.txt"
    options = WordOptions(pretrained=str(file), width=3)
    file.write_text("beta 1 2.5 -3\nother 0 0 1\n. . . 7 8 9\n")
    found = pretrained_vectors(table, options)
    assert found is not None
    assert found.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 2.5, -3]]
    assert pretrained_vectors(table, WordOptions()) is None
    for text, told in (
        ("beta 1 2\n", "line 1: 2 numbers where words.width is 3"),
        ("alpha 1 2 3\nbeta 1 x 3\n", "after line 1: no word and numbers"),
        ("alpha 1 nan 3\n", "after line 0: no word and numbers .*infinite or none"),
        ("gamma 1 2 3\n", "has a vector of none of the 2 words"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=told):
            pretrained_vectors(table, options)
    file.write_bytes(b"\x1f\x8b\xff\xfe alpha 1 2 3\n")
    with pytest.raises(DataError, match="after line 0: no word and numbers in UTF-8"):
        pretrained_vectors(table, options)
    with pytest.raises(DataError, match=r"none\.txt: cannot be read .* it is words\.pretrained"):
        pretrained_vectors(table, WordOptions(pretrained=str(tmp_path / "none.txt")))


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "fusion"), [
    ("mhsa", "attn"), ("cnn", "attn"), ("mhsa", "concat_text"), ("cnn", "title"),
])  # fmt: skip
def test_it_learns_and_a_run_scores_as_the_model_did(
    data: Prepared, tmp_path: Path, encoder: str, fusion: str
) -> None:
    over = [f"model.encoder={encoder}", f"model.fusion={fusion}", *WORDS]
    over += ["model.contrast.weight=0"] if fusion == "concat_text" else []
    path = data.dataset.path
    result = paper.train_run(path, tmp_path / "run", *over)
    assert result["validation"]["gauc"] > 0.6
    predictor = Predictor.load(tmp_path / "run")
    model = predictor.model
    assert isinstance(model.items, WordNewsEncoder)
    assert predictor.run.config.vectors == {}
    # Cached vectors are those computed anew, for single news and in any company.
    cached = model.items.table.clone()
    model.items.table = None
    with torch.inference_mode():
        everything = model.items(torch.arange(len(cached)))
        alone = torch.cat([model.items(torch.tensor([row])) for row in range(len(cached))])
    torch.testing.assert_close(everything, cached, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, cached, atol=1e-5, rtol=1e-5)
    # No text, no vector; and the model is what its own scores say.
    assert not cached[:FIRST].any()
    log = data.impressions
    some = log.of("test")[:8]
    batch = model.collator(data.histories, predictor.codec)(pointers_of(data, some))
    with torch.inference_mode():
        found = model(batch).score
        told = model.explain_persona(batch, predictor.run.catalogue)
    assert told is not None
    one = told[0][0]
    total = sum(part.contribution for part in one.entities) + one.latent + one.default
    assert total == pytest.approx(float(found[0, 0]), abs=1e-5)


def test_pretrained_words_begin_as_they_are(data: Prepared, tmp_path: Path) -> None:
    file = tmp_path / "glove.txt"
    file.write_text("person3 " + " ".join(["0.5"] * 12) + "\n")
    over = ["model.encoder=mhsa", *WORDS, f"model.words.pretrained={file}", "train.epochs=1",
            "train.lr=1e-9", "train.weight_decay=0"]  # fmt: skip
    paper.train_run(data.dataset.path, tmp_path / "run", *over)
    model = Predictor.load(tmp_path / "run").model
    row = OTHER + 1 + model.word_table.words.index("person3")
    np.testing.assert_allclose(model.items.embedding.weight[row].numpy(), 0.5, atol=1e-4)
    bad = resolve(recipe_of("news/perconet"), None, [*paper.TINY, *over[:4],
                  "model.words.pretrained=/none"], {"data": str(data.dataset.path)})  # fmt: skip
    with pytest.raises(DataError, match=r"words\.pretrained"):
        run(bad, tmp_path / "bad", show_progress=False)


@pytest.mark.slow
def test_resumed_is_undisturbed(data: Prepared, tmp_path: Path) -> None:
    over = ["model.encoder=cnn", *WORDS, "train.epochs=2"]
    whole = paper.train_run(data.dataset.path, tmp_path / "whole", *over)
    paper.train_run(data.dataset.path, tmp_path / "cut", *over, stop_at=5)
    again = paper.train_run(data.dataset.path, tmp_path / "cut", *over)
    assert again["weights_sha256"] == whole["weights_sha256"]


def test_a_catalogue_is_renewed_and_a_foreign_table_refused(data: Prepared, tmp_path: Path) -> None:
    over = ["model.encoder=mhsa", *WORDS, "train.epochs=1"]
    paper.train_run(data.dataset.path, tmp_path / "run", *over)
    report = build_catalogue(tmp_path / "run", data.dataset.path, tmp_path / "new")
    assert (report.new, report.llm_calls) == (0, 0)
    old, new = (Predictor.load(tmp_path / name).model for name in ("run", "new"))
    torch.testing.assert_close(old.items.table, new.items.table)
    with pytest.raises(ArtifactError, match="words, the model has 3"):
        WordTable.open(tmp_path / "run" / "snapshot", ("title",), 3)
