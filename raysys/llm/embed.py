"""From a data set's items to bound vectors: encodes only distinct texts the table lacks."""

import difflib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from raysys.data.dataset import Dataset
from raysys.errors import ConfigError
from raysys.llm.backbones import open_backbone
from raysys.llm.encoder import EncoderSpec, TextEncoder
from raysys.llm.keys import NO_KEYS, Keys, VectorIdentity, distinct, text_keys
from raysys.llm.progress import TextProgress
from raysys.llm.vectors import TableHeader, iter_text
from raysys.llm.writer import TableWriter

# An engine: N texts in, vectors [N, D] out, in order.
Encode = Callable[[list[str]], npt.NDArray[Any]]

ITEM_FIELDS = ("name", "title", "abstract", "text")
TEXTS_PER_CALL = 1024
# A part is committed when it has this many rows or this old a first row: a slow engine must not
# lose hours of work when it is killed, a fast one must not write thousands of files.
ROWS_PER_PART = 16_384
SECONDS_PER_PART = 60.0


class EmbedReport(BaseModel):
    """What an embed run did.

    texts: bound texts; distinct: different ones among them; llm_calls: texts the engine encoded;
    truncated: of these, cut to max_tokens (None for an engine that does not say); rebound: items
    that had another vector before; widths: field -> D.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    encoder: dict[str, Any]
    widths: dict[str, int]
    texts: int
    distinct: int
    llm_calls: int
    truncated: int | None
    rebound: int
    seconds: float


def embed_items(
    dataset: Dataset,
    table: Path | str,
    spec: EncoderSpec | None = None,
    fields: Sequence[str] = ("title",),
    *,
    encode: Encode | None = None,
    dtype: Literal["float32", "float16"] = "float32",
) -> EmbedReport:
    """Encode item fields into the vector table at `table` and bind the items to them.

    fields: of name, title, abstract, text; `text` of an item without one is composed of its
    name, title, abstract, categories and brand. encode: the engine, by default a `TextEncoder`
    in this process; the model is loaded only if a text is missing.

    Raises:
        ConfigError: unknown field, a field that no item fills, an impossible spec.
        DataError: another writer at work, or a table of another width or dtype.
    """
    spec = spec or EncoderSpec()
    started = time.monotonic()
    identity = spec.identity()
    columns = {field: item_texts(dataset, field) for field in fields}
    ids = _array(dataset.table("items", ["item_id"])["item_id"])
    engine = encode or TextEncoder(spec)
    encoder = encoder_card(spec, identity)
    bound, rebound, calls = [], 0, 0
    with TableWriter(table, TableHeader(width=encoder["width"], dtype=dtype)) as writer:
        for field, texts in columns.items():
            coded = texts.dictionary_encode()
            keys = keys_of_texts(identity, coded.dictionary)
            calls += fill(writer, keys, coded.dictionary, engine, label=field)
            present = coded.is_valid().to_numpy(zero_copy_only=False)
            code = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
            rebound += writer.bind("item", field, ids, keys[code], present, encoder, identity)
            bound.append(keys[code[present]])
    every = np.concatenate(bound)
    return EmbedReport(
        table=str(table),
        encoder=encoder,
        widths=dict.fromkeys(fields, encoder["width"]),
        texts=len(every),
        distinct=len(distinct(every)[0]),
        llm_calls=calls,
        truncated=engine.truncated if isinstance(engine, TextEncoder) else None,
        rebound=rebound,
        seconds=round(time.monotonic() - started, 3),
    )


def encoder_card(spec: EncoderSpec, identity: VectorIdentity) -> dict[str, Any]:
    """What a table notes beside bindings about the encoder of their vectors."""
    backbone = open_backbone(spec.backbone)
    return {
        **spec.model_dump(mode="json"),
        "sha256": identity.weights,
        "licence": backbone.licence,
        "width": backbone.width,
    }


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
    """Encode the texts [N] with keys [N, 2] that the table lacks, part by part; their number.

    Killed half-way, at most the texts since the last part are lost.
    """
    first, _ = distinct(keys)
    missing = np.sort(first[writer.table.rows(keys[first]) < 0])
    pending: list[npt.NDArray[Any]] = []
    begin = end = 0
    opened = time.monotonic()
    with TextProgress(label, len(missing)) as progress:
        while end < len(missing):
            rows = missing[end : end + min(TEXTS_PER_CALL, rows_per_part)]
            pending.append(np.asarray(encode(texts.take(pa.array(rows)).to_pylist())))
            end += len(rows)
            old = time.monotonic() - opened >= seconds_per_part
            if end - begin >= rows_per_part or old or end == len(missing):
                writer.append(keys[missing[begin:end]], np.concatenate(pending))
                pending, begin, opened = [], end, time.monotonic()
            progress.update(end)
    return len(missing)


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
    if field != "text":
        texts = _filled(_array(dataset.table("items", [field])[field]))
    else:
        sources = ["text", "name", "title", "abstract", "category", "brand"]
        items = dataset.table("items", sources)
        parts = {name: _array(items[name]) for name in sources}
        parts["category"] = pc.binary_join(parts["category"], ", ")
        repeated = pc.fill_null(pc.equal(parts["title"], parts["name"]), False)
        parts["title"] = pc.if_else(repeated, None, parts["title"])
        own, *rest = (_filled(parts[name]) for name in sources)
        # Skipping nulls, pyarrow leaves out a row that has nothing else; so each row starts with
        # an empty text, whose separator is cut off again.
        start = pa.repeat(pa.scalar(""), len(items))
        joined = pc.binary_join_element_wise(start, *rest, ". ", null_handling="skip")
        texts = pc.coalesce(own, _filled(pc.utf8_slice_codeunits(joined, 2)))
    if texts.null_count == len(texts):
        raise ConfigError(f"{dataset.path}: no item has a text in field {field!r}")
    return texts


def _filled(texts: pa.Array) -> pa.Array:
    """Blank texts as nulls: they say nothing, so they get no vector."""
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)
    return pc.if_else(blank, pa.scalar(None, pa.string()), texts)


def _array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)
