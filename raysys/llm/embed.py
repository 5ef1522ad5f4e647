"""From a data set's items to bound vectors: encodes only distinct texts the table lacks."""

import difflib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from raysys.data.dataset import Dataset
from raysys.errors import ConfigError, DataError
from raysys.llm.backbones import open_backbone
from raysys.llm.encoder import EncoderSpec, open_head
from raysys.llm.engine import Engine, Resources, Vectors, embed
from raysys.llm.engine.embed import ROWS_PER_CHUNK
from raysys.llm.keys import NO_KEYS, Keys, VectorIdentity, distinct, text_keys
from raysys.llm.progress import TextProgress
from raysys.llm.vectors import TableHeader, iter_text
from raysys.llm.writer import TableWriter

# An engine of one's own: N texts in, vectors [N, D] out, in order.
Encode = Callable[[list[str]], npt.NDArray[Any]]
# Any engine: N texts in, chunks of answers out, in order.
Stream = Callable[[pa.Array], Iterator[Vectors]]

ITEM_FIELDS = ("name", "title", "abstract", "title_abstract", "text")
FAULTS_SHOWN = 5
# A part is committed when it has this many rows or this old a first row: a slow engine must not
# lose hours of work when it is killed, a fast one must not write thousands of files.
ROWS_PER_PART = 16_384
SECONDS_PER_PART = 60.0
_WAIT_S = 30.0


class EmbedReport(BaseModel):
    """What an embed run did.

    texts: bound texts; distinct: different ones among them; llm_calls: texts given to the engine;
    truncated: of these, cut to max_tokens; failed: of these, left without a vector, which the
    next run tries again, with the first few of them in `faults`; rebound: items that had another
    vector before; widths: field -> D.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    encoder: dict[str, Any]
    widths: dict[str, int]
    texts: int
    distinct: int
    llm_calls: int
    truncated: int
    failed: int
    faults: tuple[str, ...]
    rebound: int
    seconds: float


def embed_items(
    dataset: Dataset,
    table: Path | str,
    spec: EncoderSpec | None = None,
    fields: Sequence[str] = ("title",),
    *,
    engine: Engine = "auto",
    resources: Resources | None = None,
    encode: Encode | None = None,
    dtype: Literal["float32", "float16"] = "float32",
) -> EmbedReport:
    """Encode item fields into the vector table at `table` and bind the items to them.

    fields: of name, title, abstract, text; `text` of an item without one is composed of its
    name, title, abstract, categories and brand. encode: used in place of `engine`; either starts
    only if a text is missing.

    Raises:
        ConfigError: unknown field, a field that no item fills, an impossible spec.
        DataError: another writer at work, or a table of another width or dtype.
        RaysysError: the engine does not start or keeps dying; what was committed stays.
    """
    spec = spec or EncoderSpec()
    started = time.monotonic()
    identity = spec.identity()
    columns = {field: item_texts(dataset, field).dictionary_encode() for field in fields}
    ids = _array(dataset.table("items", ["item_id"])["item_id"])
    encoder = encoder_card(spec, identity)
    stream = (
        in_chunks(encode) if encode else partial(embed, spec, engine=engine, resources=resources)
    )
    keys = {field: keys_of_texts(identity, coded.dictionary) for field, coded in columns.items()}
    bound, rebound = [], 0
    header = TableHeader(width=encoder["width"], dtype=dtype)
    # A server that stores a few vectors is soon done; a job need not fail for it.
    with TableWriter(table, header, wait_s=_WAIT_S) as writer:
        # One job for all fields: an engine takes long to start.
        every = pa.concat_arrays([coded.dictionary for coded in columns.values()])
        filled = fill_from(
            writer, np.concatenate(list(keys.values())), every, stream, label=", ".join(fields)
        )
        for field, coded in columns.items():
            code = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
            present = coded.is_valid().to_numpy(zero_copy_only=False)
            present &= (writer.table.rows(keys[field]) >= 0)[code]
            mine = keys[field][code]
            rebound += writer.bind("item", field, ids, mine, present, encoder, identity)
            bound.append(mine[present])
    texts = np.concatenate(bound)
    return EmbedReport(
        table=str(table),
        encoder=encoder,
        widths=dict.fromkeys(fields, encoder["width"]),
        texts=len(texts),
        distinct=len(distinct(texts)[0]),
        llm_calls=filled.calls,
        truncated=filled.truncated,
        failed=filled.failed,
        faults=tuple(filled.faults),
        rebound=rebound,
        seconds=round(time.monotonic() - started, 3),
    )


def encoder_card(spec: EncoderSpec, identity: VectorIdentity) -> dict[str, Any]:
    """What a table notes beside bindings about the encoder of their vectors."""
    backbone, head = open_backbone(spec.backbone), open_head(spec)
    return {
        **spec.model_dump(mode="json"),
        "adapter": identity.adapter,
        "head": identity.head,
        "sha256": identity.weights,
        "licence": backbone.licence,
        "width": head.width if head else backbone.width,
    }


@dataclass
class Filled:
    """What `fill_from` did: texts given to the engine, of these cut, of these without a vector."""

    calls: int = 0
    truncated: int = 0
    failed: int = 0
    faults: list[str] = field(default_factory=list)


def fill(
    writer: TableWriter,
    keys: Keys,
    texts: pa.Array,
    encode: Encode,
    *,
    label: str = "texts",
    rows_per_part: int = ROWS_PER_PART,
    seconds_per_part: float = SECONDS_PER_PART,
) -> int:
    """`fill_from` with an engine of one's own; how many texts it was given."""
    stream = in_chunks(encode, min(ROWS_PER_CHUNK, rows_per_part))
    return fill_from(
        writer,
        keys,
        texts,
        stream,
        label=label,
        rows_per_part=rows_per_part,
        seconds_per_part=seconds_per_part,
    ).calls


def fill_from(
    writer: TableWriter,
    keys: Keys,
    texts: pa.Array,
    stream: Stream,
    *,
    label: str = "texts",
    rows_per_part: int = ROWS_PER_PART,
    seconds_per_part: float = SECONDS_PER_PART,
) -> Filled:
    """Encode the texts [N] with keys [N, 2] that the table lacks, part by part.

    Killed half-way, at most the texts since the last part are lost.

    Raises:
        RaysysError: the engine fails as a whole; the answers it gave before are kept.
    """
    first, _ = distinct(keys)
    missing = np.sort(first[writer.table.rows(keys[first]) < 0])
    out = Filled(calls=len(missing))
    if not len(missing):
        return out
    pending: list[npt.NDArray[Any]] = []
    rows: list[npt.NDArray[np.int64]] = []
    opened = time.monotonic()

    def commit() -> None:
        given_rows, values = list(rows), list(pending)
        rows.clear()
        pending.clear()
        if given_rows:
            writer.append(keys[np.concatenate(given_rows)], np.concatenate(values))

    given = texts.take(pa.array(missing))
    with TextProgress(label, len(missing)) as progress:
        end = 0
        try:
            for chunk in stream(given):
                # As they are stored: what overflows there is lost too.
                with np.errstate(over="ignore"):
                    values = np.asarray(chunk.values, writer.header.dtype)
                strange = np.flatnonzero(
                    ~np.isfinite(values).reshape(len(values), -1).all(1)
                ).tolist()
                faults = dict.fromkeys(strange, "its vector is not finite") | chunk.faults
                good = np.array([i not in faults for i in range(len(values))], bool)
                rows.append(missing[end : end + len(good)][good])
                pending.append(values[good])
                out.truncated += chunk.truncated
                out.failed += len(faults)
                for row, fault in sorted(faults.items()):
                    if len(out.faults) < FAULTS_SHOWN:
                        out.faults.append(f"{given[end + row].as_py()[:60]!r}: {fault}")
                end += len(good)
                old = time.monotonic() - opened >= seconds_per_part
                if old or sum(map(len, rows)) >= rows_per_part:
                    commit()
                    opened = time.monotonic()
                progress.update(end)
        finally:
            commit()
    if end != len(missing):
        raise DataError(f"the encoder gave {end} vectors for {len(missing)} texts")
    return out


def in_chunks(encode: Encode, rows: int = ROWS_PER_CHUNK) -> Stream:
    """A stream of a function of N texts, which is called with at most `rows` of them."""

    def stream(texts: pa.Array) -> Iterator[Vectors]:
        for begin in range(0, len(texts), rows):
            yield Vectors(np.asarray(encode(texts.slice(begin, rows).to_pylist())))

    return stream


def keys_of_texts(identity: VectorIdentity, texts: pa.Array) -> Keys:
    """Keys [N, 2] of a string column [N] without nulls."""
    parts = [text_keys(identity, chunk) for chunk in iter_text(texts)]
    return np.concatenate([NO_KEYS, *parts])


def item_texts(dataset: Dataset, field: str) -> pa.Array:
    """The text of a field [N] in the order of the items table; null where blank.

    Raises:
        ConfigError: unknown field, or one that no item fills.
    """
    if field not in ITEM_FIELDS:
        near = difflib.get_close_matches(field, ITEM_FIELDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"field {field!r} is none of {', '.join(ITEM_FIELDS)}{hint}")
    if field == "title_abstract":
        items = dataset.table("items", ["title", "abstract"])
        texts = _joined([_filled(_large(items[name])) for name in ("title", "abstract")])
    elif field != "text":
        texts = _filled(_large(dataset.table("items", [field])[field]))
    else:
        sources = ["text", "name", "title", "abstract", "category", "brand"]
        items = dataset.table("items", sources)
        joined = {"category": pc.binary_join(items["category"], ", ")}
        parts = {name: _large(joined.get(name, items[name])) for name in sources}
        repeated = pc.fill_null(pc.equal(parts["title"], parts["name"]), False)
        parts["title"] = pc.if_else(repeated, None, parts["title"])
        own, *rest = (_filled(parts[name]) for name in sources)
        texts = pc.coalesce(own, _joined(rest))
    if texts.null_count == len(texts):
        raise ConfigError(f"{dataset.path}: no item has a text in field {field!r}")
    return texts


def _joined(parts: list[pa.Array]) -> pa.Array:
    """Texts [N] with ". " between those of the parts that a row has; null where it has none."""
    # Skipping nulls, pyarrow leaves out a row that has nothing else; so each row starts with
    # an empty text, whose separator is cut off again.
    start = pa.repeat(pa.scalar("", pa.large_string()), len(parts[0]))
    between = pa.scalar(". ", pa.large_string())
    whole = pc.binary_join_element_wise(start, *parts, between, null_handling="skip")
    return _filled(pc.utf8_slice_codeunits(whole, 2))


def _filled(texts: pa.Array) -> pa.Array:
    """Blank texts as nulls: they say nothing, so they get no vector."""
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)
    return pc.if_else(blank, pa.scalar(None, pa.large_string()), texts)


def _large(column: pa.ChunkedArray) -> pa.LargeStringArray:
    """Texts in one piece; of millions of items they have more bytes than a string array takes."""
    return _array(column.cast(pa.large_string()))


def _array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)
