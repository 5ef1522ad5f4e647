"""`reuters` in its two layouts, and simulated readers of real news."""

import filecmp
import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from raysys.cli.data import app
from raysys.data.check import check
from raysys.data.dataset import Dataset
from raysys.data.loaders import import_dataset
from raysys.data.mapping import LocalMapper
from raysys.data.prepared import prepare
from raysys.data.world import Effects, WorldConfig, make_world
from raysys.data.world.reading import read_rows
from raysys.data.world.show import show
from raysys.data.world.simulate import build_world
from raysys.data.world.truth import read_truth
from raysys.errors import ConfigError, DataError
from raysys.metrics.baselines import reader_kinds

TOPICS = ("crude", "earn", "trade", "grain")
WORDS = ["ship", "farm", "bank", "wheat", "mine", "steel", "court", "dollar", "strike"]
PLACES = ("usa", "west-germany", "japan", "brazil", "iran")


def article(number: int, **fields: Any) -> dict[str, Any]:
    """An article as the Parquet form has it."""
    place = PLACES[number % len(PLACES)]
    topic = TOPICS[number % len(TOPICS)]
    row = {
        "newid": number,
        "date": f"{1 + number % 28}-MAR-1987 09:{number % 60:02d}:21.26",
        "topics": [topic, "acq"],
        "places": [place],
        "people": ["james-baker"] if number % 3 == 0 else [],
        "orgs": ["ec"] if number % 7 == 0 else [],
        "title": f"{place.upper().replace('-', ' ')} & {topic} no {number}",
        "body": f"The {topic} of number {number} rose\nby {number} pct on "
        f"<{WORDS[number % 9]} inc>.\n"
        "    A second paragraph follows here.\n Reuter\n",
    }
    return row | fields


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "reuters21578.parquet")
    return folder


def write_sgml(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = '<!DOCTYPE lewis SYSTEM "lewis.dtd">\n'
    for row in rows:
        tags = "".join(
            f"<{name.upper()}>{''.join(f'<D>{tag}</D>' for tag in row[name])}</{name.upper()}>\n"
            for name in ("topics", "places", "people", "orgs")
        )
        text += (
            f'<REUTERS TOPICS="YES" OLDID="5" NEWID="{row["newid"]}">\n<DATE>{row["date"]}</DATE>\n'
            f"{tags}<TEXT>\n<TITLE>{html.escape(row['title'])}</TITLE>\n"
            f"<BODY>{html.escape(row['body'])}\x03</BODY></TEXT>\n</REUTERS>\n"
        )
    (folder / "reut2-000.sgm").write_text(text, encoding="latin-1")
    return folder


def test_both_layouts_give_the_same_corpus(tmp_path: Path) -> None:
    rows = [article(n) for n in range(1, 41)]
    rows.append(article(99, body="", title="NO BODY"))
    rows.append(article(7_000, title="CAFÉ"))
    tables = []
    for name, write in (("p", write_parquet), ("s", write_sgml)):
        manifest = import_dataset("reuters", write(tmp_path / name, rows), tmp_path / f"{name}-out")
        assert (manifest.kind, manifest.data_card.counts["source_rows"]) == ("corpus", 42)
        assert check(tmp_path / f"{name}-out").ok
        folder = Dataset(tmp_path / f"{name}-out")
        tables.append([folder.table(table).to_pylist() for table in ("items", "documents")])
    assert tables[0] == tables[1]
    items = {row["item_id"]: row for row in tables[0][0]}
    assert len(items) == 41
    six = items["r00006"]
    assert six["title"] == "WEST GERMANY & trade no 6"
    assert six["abstract"] == "The trade of number 6 rose by 6 pct on <court inc>."
    assert six["text"] == six["abstract"] + " A second paragraph follows here."
    assert six["category"] == ["reuters", "trade"]
    assert [(e["id"], e["label"], e["type"], e["field"]) for e in six["entities"]] == [
        ("people:james-baker", "James Baker", "PERSON", "abstract"),
        ("places:west-germany", "West Germany", "LOC", "title"),
    ]
    assert items["r00007"]["entities"][0]["label"] == "EC"
    assert items["r07000"]["title"] == "CAFÉ"


def test_bad_reuters_files_are_named(tmp_path: Path) -> None:
    cut = write_sgml(tmp_path / "cut", [article(1), article(2)]) / "reut2-000.sgm"
    cut.write_text(cut.read_text(encoding="latin-1")[:-30], encoding="latin-1")
    with pytest.raises(DataError, match=r"reut2-000.sgm: 2 articles begin and 1 end"):
        import_dataset("reuters", cut.parent, tmp_path / "o")
    twice = write_parquet(tmp_path / "twice", [article(1), article(1)])
    with pytest.raises(DataError, match="row 2: news id r00001 occurs twice"):
        import_dataset("reuters", twice, tmp_path / "o")
    undated = write_parquet(tmp_path / "undated", [article(1, date="yesterday")])
    with pytest.raises(DataError, match="row 1: 'yesterday' is no date"):
        import_dataset("reuters", undated, tmp_path / "o")
    for day in ("31-APR-1987 10:00:00", "99-FEB-1987 10:00:00"):
        wrong = write_parquet(tmp_path / day[:6], [article(1, date=day)])
        with pytest.raises(DataError, match=f"row 1: '{day}' is no date"):
            import_dataset("reuters", wrong, tmp_path / "o")
    slip = write_parquet(tmp_path / "slip", [article(1, date="31-MAR-1987 605:12:19.12")])
    import_dataset("reuters", slip, tmp_path / "o")
    assert Dataset(tmp_path / "o").table("items")["created_at"].to_pylist() == [544147200_000000]
    with pytest.raises(DataError, match=r"reut2-000\.sgm"):
        import_dataset("reuters", tmp_path, tmp_path / "none")


SMALL = {"kind": "readers", "users": 120, "days": 20, "seed": 3, "truth_terms": True}


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reuters")
    rows = [article(n, topics=[] if n % 10 == 0 else [TOPICS[n % 4]]) for n in range(1, 1200)]
    import_dataset("reuters", write_parquet(folder / "src", rows), folder / "n")
    return folder / "n"


@pytest.fixture(scope="module")
def readers(news: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("readers") / "w"
    make_world(WorldConfig(**SMALL), out, LocalMapper(), news=news)
    return out


def test_readers_read_the_real_articles_in_their_order(news: Path, readers: Path) -> None:
    assert check(readers).ok
    real = {row["item_id"]: row for row in Dataset(news).table("items").to_pylist()}
    read = Dataset(readers).table("items").to_pylist()
    assert len(read) == sum(row["category"] is not None for row in real.values())
    before = [real[row["item_id"]] for row in read]
    for then, now in zip(before, read, strict=True):
        assert {**then, "created_at": 0} == {**now, "created_at": 0}
    times = [(row["created_at"], row["item_id"]) for row in before]
    assert times == sorted(times)
    assert (np.diff([row["created_at"] for row in read]) > 0).all()
    card = Dataset(readers).card
    assert card.dataset == "world-readers"
    assert "drawn from the planted law" in card.notes["simulation"]
    assert Dataset(news).card.id in card.notes["news"]


class Backwards:
    """Does the tasks from the last to the first."""

    def __call__(
        self, fn: Callable[[Any], Any], tasks: Sequence[Any], *, label: str
    ) -> Iterator[Any]:
        return reversed([fn(task) for task in reversed(tasks)])


def test_same_seed_same_bytes(news: Path, tmp_path: Path) -> None:
    config = WorldConfig(**SMALL | {"users": 40}, shard_users=16)
    make_world(config, tmp_path / "a", LocalMapper(), news=news)
    build_world.cache_clear()  # another process draws the articles anew
    make_world(config, tmp_path / "b", Backwards(), news=news)
    names = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    same, *others = filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False)
    assert (len(same), others) == (len(names), [[], []])


def test_kinds_of_readers_and_the_entity_switch(
    readers: Path, news: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    off = WorldConfig(**SMALL, effects=Effects(entity=False))
    make_world(off, tmp_path / "off", LocalMapper(), news=news)
    for folder, driven in ((readers, True), (tmp_path / "off", False)):
        truth = read_truth(folder)
        rows = read_rows(Dataset(folder), truth, parts=9)
        kind = np.array(truth.users()["reader"].to_pylist())[rows.user[rows.request]]
        liking = truth.rows()["term_entity"].to_numpy()
        assert set(kind) == {"topic", "mixed", "entity"}
        assert not liking[kind == "topic"].any()
        assert bool(liking[kind == "entity"].any()) == driven
        if driven:
            mine = kind == "entity"
            clicked = liking[mine][rows.click[mine].astype(bool)].mean()
            assert clicked > liking[mine].mean() + 0.2
    assert show(readers)["kind"] == "readers"
    data = prepare(Dataset(readers))
    told, kinds = read_truth(readers).users(), reader_kinds(data)
    assert kinds is not None
    users = dict(zip(told["user_id"].to_pylist(), told["reader"].to_pylist(), strict=True))
    assert [users[name] for name in data.histories.users.to_pylist()] == kinds.tolist()


def test_what_readers_cannot_read(news: Path, tmp_path: Path) -> None:
    few = WorldConfig(**SMALL | {"days": 80})
    with pytest.raises(DataError, match="1080 items have title, abstract and category; 80 days"):
        make_world(few, tmp_path / "w", LocalMapper(), news=news)
    with pytest.raises(ConfigError, match="kind readers, and no other"):
        make_world(WorldConfig(**SMALL), tmp_path / "w", LocalMapper())
    made = CliRunner().invoke(app, ["make", "readers", "--news", str(news), "--out",
                                    str(tmp_path / "w"), "articles_per_day=30"])  # fmt: skip
    assert isinstance(made.exception, ConfigError)
    assert "articles_per_day comes from the articles of --news" in str(made.exception)
    assert not (tmp_path / "w").exists()
