"""The report shows the numbers it is given, of whole and of unfinished runs."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from baselines_fixtures import random_log, untrained_run, write
from typer.testing import CliRunner

from raysys.cli.report import report
from raysys.errors import ArtifactError
from raysys.recipes.evaluate import evaluate
from raysys.tracking.figures import LineFigure, Series, TableFigure, write_figure
from raysys.tracking.report import Evaluated, number, write_report


class Page(HTMLParser):
    """Visible text, image sources and whether all tags are closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.images: list[str] = []
        self.scripts = 0
        self.raw = path.read_text(encoding="utf-8")
        self.feed(self.raw)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.scripts += tag == "script"
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """root/data, root/run: a whole, evaluated run with a log and a figure of its own."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYSYS_CACHE", str(folder / "cache"))
        log = random_log(21, users=16, impressions=160)
        run = untrained_run(write(log, folder), folder / "run")
        evaluate(run, folder / "data", replicates=200)
        lines = [{"kind": "step", "step": i, "loss": 1 / i} for i in range(1, 2000)]
        lines.append({"kind": "epoch", "step": 1999, "loss": 0.1, "val/auc": 0.61})
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        write_figure(
            run, "arms", TableFigure(title="Arms", columns=("arm", "x"), rows=(("full", 0.12345),))
        )
        yield folder


@pytest.fixture(scope="module")
def page(root: Path) -> Page:
    return Page(write_report(root / "report.html", [root / "run"], root / "data"))


def test_page_is_whole_and_self_contained(page: Page) -> None:
    assert page.open == []
    assert page.scripts == 0
    assert page.images
    assert all(image.startswith("data:image/svg+xml;base64,") for image in page.images)
    assert not re.search(r"(src|href)=\"(?!data:|#)", page.raw)
    assert len(page.raw) < 2_000_000


def test_every_number_of_the_evaluation_is_shown(page: Page, root: Path) -> None:
    result = Evaluated.model_validate_json((root / "run" / "metrics.json").read_bytes())
    assert result.summary in page.text
    for values in (result.model, *result.baselines.values()):
        for value in values.values():
            assert number(value.value) in page.text
    assert set(result.baselines) <= set(page.words)
    for interval in (table[result.headline] for table in result.intervals.values()):
        words = f"{interval.delta:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
        assert words in page.text
    for finding in result.findings:
        assert finding.test in page.text


def test_run_data_figures_and_explanations_are_shown(page: Page, root: Path) -> None:
    config = json.loads((root / "run" / "config.json").read_text())
    for word in (config["model_id"], config["data_card_id"], config["recipe"], "0.1235", "Arms"):
        assert word in page.text
    for heading in ("Training loss", "Validation auc", "Calibration on test", "Explained rankings"):
        assert heading in page.text
    assert "because of" in page.text


def test_examples_are_the_predictor_s_own(page: Page, root: Path) -> None:
    from raysys.tracking.explain import explain_run

    found = explain_run(root / "run", root / "data", count=2, top=3)
    assert len(found.examples) == 2
    for example in found.examples:
        scores = [item.score for item in example.ranked]
        assert scores == sorted(scores, reverse=True)
        assert any(item.reasons for item in example.ranked)
        assert example.request in page.text


def test_unfinished_and_unevaluated_runs_say_so(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "training"
    log.mkdir()
    shutil.copy(root / "run" / "metrics.jsonl", log)
    fresh = shutil.copytree(root / "run", tmp_path / "fresh")
    (fresh / "metrics.json").unlink()
    text = Page(write_report(tmp_path / "r.html", [log, fresh])).text
    assert "Training has not finished here." in text
    assert text.count("Not evaluated yet") == 2
    assert "not evaluated" in text


def test_seed_folders_and_plain_metrics(root: Path, tmp_path: Path) -> None:
    for seed in (0, 1, 10):
        run = tmp_path / "arm" / f"seed-{seed}"
        run.mkdir(parents=True)
        shutil.copy(root / "run" / "config.json", run)
        (run / "metrics.json").write_text(json.dumps({"perplexity": 12.5 + seed, "note": "x"}))
    text = Page(write_report(tmp_path / "r.html", [tmp_path / "arm"])).text
    places = [text.rindex(f"arm/seed-{seed}") for seed in (0, 1, 10)]
    assert places == sorted(places)
    assert "22.5000" in text


def test_text_from_outside_is_escaped(root: Path, tmp_path: Path) -> None:
    run = shutil.copytree(root / "run", tmp_path / "run")
    (run / "README.md").write_text("<script>alert(1)</script>")
    nasty = "</td><script>alert(2)</script>"
    write_figure(run, "x", TableFigure(title=nasty, columns=(nasty,), rows=((nasty,),)))
    extra = LineFigure(
        title=nasty, x_label=nasty, y_label="$\\frac$", series=(Series(name=nasty, x=(1,), y=(1,)),)
    )
    page = Page(write_report(tmp_path / "r.html", [run], extra=[extra]))
    assert page.scripts == 0
    assert page.open == []
    assert nasty in page.words


def test_damaged_files_are_named_and_nothing_is_written(root: Path, tmp_path: Path) -> None:
    run = shutil.copytree(root / "run", tmp_path / "run")
    (run / "metrics.json").write_text('{"model": 3, "baselines": {}}')
    with pytest.raises(ArtifactError, match=r"metrics\.json: damaged"):
        write_report(tmp_path / "r.html", [run])
    (run / "metrics.json").unlink()
    (run / "scores" / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match=r"test\.parquet"):
        write_report(tmp_path / "r.html", [run])
    with pytest.raises(ArtifactError, match="no such run folder"):
        write_report(tmp_path / "r.html", [tmp_path / "none"])
    with pytest.raises(ArtifactError, match="no run folder"):
        write_report(tmp_path / "r.html", [root])
    assert not (tmp_path / "r.html").exists()


def test_other_data_gives_no_examples(root: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write(random_log(5, users=8, impressions=60), tmp_path / "other")
    text = Page(write_report(tmp_path / "r.html", [root / "run"], tmp_path / "other" / "data")).text
    assert "No explained rankings" in text


def test_command_writes_the_page(root: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report)
    out = tmp_path / "page.html"
    arguments = [str(root / "run"), "--out", str(out), "--tensorboard", "--examples", "0"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.stdout == f"{out}\n"
    assert out.is_file()
    assert list((root / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, ""), ("a", "a"), (12345, "12,345"), (639.0, "639"), (1.0, "1.0000"), (0.0, "0.0000"),
     (0.71234, "0.7123"), (3.2e-05, "3.2e-05"), (-0.5, "-0.5000")],
)  # fmt: skip
def test_numbers_in_words(value: float | str | None, words: str) -> None:
    assert number(value) == words
