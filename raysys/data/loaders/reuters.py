"""Reuters-21578: newswire of 1987 whose editors tagged topics, people, organisations and places.

Read are the distribution's `reut2-*.sgm` files, or one Parquet file with the columns newid, date,
topics, places, people, orgs, title and body. Nobody's clicks are in it: the result is a corpus
(`documents`) with a catalogue of news (`items`), to which `raysys data make readers` adds
simulated readers.
"""

import html
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from raysys.data.loaders.base import ImportedCorpus, Options
from raysys.data.loaders.reading import read_parquet, require_file
from raysys.data.manifest import DataCard
from raysys.data.schema import DOCUMENTS, ITEMS
from raysys.data.split import Folds, split_names
from raysys.errors import DataError

_TAGS = {"people": "PERSON", "orgs": "ORG", "places": "LOC"}
_LISTS = ("topics", *_TAGS)
_COLUMNS = ("newid", "date", *_LISTS, "title", "body")
_TIME = re.compile(r"\s*(\d{1,2}-[A-Za-z]{3}-\d{4})\s+(\d{2}:\d{2}:\d{2})")
_DAY = re.compile(r"\s*(\d{1,2}-[A-Za-z]{3}-\d{4})\b")
_ARTICLE = re.compile(r"<REUTERS\b[^>]*?\bNEWID=\"(\d+)\"[^>]*>(.*?)</REUTERS>", re.DOTALL)
_ABBREVIATIONS = {"usa", "uk", "ussr", "uae"}


class ReutersOptions(Folds, Options):
    """The documents are split like folds over articles; articles with fewer body words than
    `min_words` are left out."""

    min_words: int = Field(default=5, ge=1)


class Reuters:
    """Loader of the SGML distribution, or of its Parquet form."""

    name = "reuters"
    version = "1"
    options = ReutersOptions

    def files(self, src: Path, options: ReutersOptions) -> list[Path]:
        """`reut2-*.sgm` in the folder `src`, or `src` itself, or the one Parquet file in it."""
        if src.is_file():
            return [src]
        for pattern in ("reut2-*.sgm", "reuters*.parquet"):
            if found := sorted(src.glob(pattern)):
                return found
        return [require_file(src / "reut2-000.sgm")]

    def load(self, src: Path, options: ReutersOptions) -> ImportedCorpus:
        """Read; articles without title or body are left out and counted on the card."""
        articles = [a for path in self.files(src, options) for a in _articles(path)]
        kept, seen = [], set()
        for where, article in articles:
            if article["id"] in seen:
                raise DataError(f"{where}: news id {article['id']} occurs twice")
            seen.add(article["id"])
            if article["title"] and len(article["body"].split()) >= options.min_words:
                kept.append((where, article))
        if not kept:
            raise DataError(f"{src}: no article with a title and a body")
        ids = pa.array([article["id"] for _, article in kept])
        split = split_names(options.split(ids.to_numpy(zero_copy_only=False)))
        return ImportedCorpus(
            documents=pa.table(
                {
                    "doc_id": ids,
                    "split": split,
                    "title": [article["title"] for _, article in kept],
                    "text": [article["body"] for _, article in kept],
                },
                schema=DOCUMENTS,
            ),
            items=pa.Table.from_pylist([_item(where, a) for where, a in kept], schema=ITEMS),
            card=DataCard(
                dataset="reuters",
                version="21578",
                reader=self.name,
                filters=(f"articles without title or with under {options.min_words} body words",),
                label_rule="none: nobody's clicks are in this set",
                split_rule=options.describe("articles"),
                group_key="impression",
                history_cut="none",
                counts={"source_rows": len(articles)},
                licence="Reuters and Carnegie Group: research use, cite Lewis, Reuters-21578",
                notes={"entities": "tags of Reuters' editors", "time": "as printed, read as UTC"},
            ),
        )


def _squeezed(text: str | None) -> str:
    return " ".join((text or "").split())


def _articles(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, fields) of each article of a file; texts as they are printed."""
    if path.suffix == ".sgm":
        rows: Iterable[tuple[str, dict[str, Any]]] = _sgml(path)
    else:
        source = read_parquet(path, _COLUMNS)
        rows = ((source.where(n), row) for n, row in enumerate(_rows(source.column, len(source))))
    for where, row in rows:
        lists = {name: [str(tag) for tag in row[name] or ()] for name in _LISTS}
        body = re.sub(r"\s*\bReuter\s*$", "", row["body"] or "", flags=re.IGNORECASE)
        yield (
            where,
            {
                "id": f"r{int(row['newid']):05d}",
                "date": row["date"] or "",
                "title": _squeezed(row["title"]),
                # Paragraphs begin with spaces; lines within them are only wrapped.
                "abstract": _squeezed(re.split(r"\n\s{2,}", body.strip())[0]),
                "body": _squeezed(body),
                **lists,
            },
        )


def _rows(column: Any, count: int) -> Iterator[dict[str, Any]]:
    values = [column(name).to_pylist() for name in _COLUMNS]
    for n in range(count):
        yield dict(zip(_COLUMNS, (value[n] for value in values), strict=True))


def _sgml(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = path.read_text(encoding="latin-1")
    found = list(_ARTICLE.finditer(text))
    if len(found) != text.count("<REUTERS"):
        raise DataError(
            f"{path}: {text.count('<REUTERS')} articles begin and {len(found)} end with a NEWID; "
            "the file was cut or changed"
        )

    def inner(tag: str, within: str) -> str:
        match = re.search(rf"<{tag}\b[^>]*>(.*?)</{tag}>", within, re.DOTALL)
        return match.group(1) if match else ""

    for match in found:
        number, article = match.groups()
        yield (
            f"{path}: NEWID {number}",
            {
                "newid": number,
                "date": inner("DATE", article),
                "title": html.unescape(inner("TITLE", article)),
                "body": html.unescape(inner("BODY", article)).rstrip(" \x03"),
                **{
                    name: re.findall(r"<D>(.*?)</D>", inner(name.upper(), article))
                    for name in _LISTS
                },
            },
        )


def _when(where: str, text: str) -> int:
    # A handful of stamps carry a slip of the keyboard in the hour; their day is good.
    for pattern, form in ((_TIME, "%d-%b-%Y %H:%M:%S"), (_DAY, "%d-%b-%Y")):
        match = pattern.match(text)
        with suppress(ValueError):
            if match is not None:
                moment = datetime.strptime(" ".join(match.groups()), form)
                return int(moment.replace(tzinfo=UTC).timestamp()) * 1_000_000
    raise DataError(f"{where}: {text!r} is no date (want 26-FEB-1987 15:01:01)")


def _label(kind: str, tag: str) -> str:
    words = tag.replace("-", " ")
    return words.upper() if kind == "orgs" or tag in _ABBREVIATIONS else words.title()


def _item(where: str, article: dict[str, Any]) -> dict[str, Any]:
    title = f" {re.sub(r'[^a-z0-9]+', ' ', article['title'].lower())} "
    return {
        "item_id": article["id"],
        "kind": "news",
        "name": article["title"],
        "title": article["title"],
        "abstract": article["abstract"],
        "text": article["body"],
        "category": ["reuters", article["topics"][0]] if article["topics"] else None,
        "created_at": _when(where, article["date"]),
        "attributes": [("topics", "|".join(article["topics"]))] if article["topics"] else [],
        "entities": [
            {
                "id": f"{kind}:{tag}",
                "label": _label(kind, tag),
                "type": entity_type,
                "confidence": 1.0,
                # Editors tag the article; where its title has the name, the tag is the title's.
                "field": "title" if f" {tag.replace('-', ' ')} " in title else "abstract",
            }
            for kind, entity_type in _TAGS.items()
            for tag in dict.fromkeys(article[kind])
        ],
    }
