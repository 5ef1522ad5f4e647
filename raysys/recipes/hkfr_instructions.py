"""Instructions of HKFR: what `llm/instruct` tunes on (§2.3)."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from raysys.data.dataset import Dataset
from raysys.data.files import new_folder, sha256_file
from raysys.data.prepared import prepare
from raysys.errors import ConfigError, DataError
from raysys.hkfr.anonymise import Anonymiser
from raysys.hkfr.config import AnonymiseOptions, InstructionConfig
from raysys.hkfr.instructions import KeyedSample, KnownAt, ask
from raysys.hkfr.items import Items
from raysys.hkfr.moments import Moments, things
from raysys.hkfr.samples import MANIFEST, SAMPLES, SCHEMA, VOCABULARY
from raysys.hkfr.store import KnowledgeStore
from raysys.hkfr.tasks import TASKS

_ROWS_PER_GROUP = 16_384


class InstructionsReport(BaseModel):
    """What was built.

    samples: by part; tasks: training samples of each; skipped: tasks that the data set has no
    answers for, and why; without_knowledge: requests without a text that they may use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    data_card_id: str
    samples: dict[str, int]
    tasks: dict[str, int]
    skipped: dict[str, str]
    without_knowledge: int
    vocabulary: dict[str, int]
    seconds: float


def build_instructions(
    data: Path, knowledge: Path, out: Path, config: InstructionConfig, *, overwrite: bool = False
) -> InstructionsReport:
    """Write `samples.parquet`, `vocabulary.json` and `manifest.json` into the folder `out`.

    Raises:
        ConfigError: an item field that no column is behind; another salt than the knowledge's.
        DataError: no data set, no knowledge of it, no sample at all, or `out` exists.
    """
    begin = time.monotonic()
    dataset = Dataset(data)
    known = KnownAt(KnowledgeStore(knowledge), dataset.card.id, config.max_age_days)
    table = dataset.table("items")
    options = AnonymiseOptions.model_validate(known.bound.options["anonymise"])
    anonymiser = Anonymiser(options, dataset.card.dataset)
    if options.opaque_ids and anonymiser.fingerprint != known.bound.salt:
        raise ConfigError(
            f"{knowledge}: its pseudonyms have another salt; put that one into the environment "
            f"variable {options.salt_env}"
        )
    items = things(table, Items(table, anonymiser), config)
    moments = Moments(prepare(dataset), items, config)
    asked = ask(moments, known, config.tasks or tuple(TASKS), config.seed, config.train_per_user)
    if not asked.samples:
        raise DataError(
            f"{data}: no request has both knowledge and an answer ({asked.without_knowledge:,} "
            "are without knowledge); build knowledge of the days of the requests (days=N), or, "
            "for a log without orders, pass answer_from=clicks"
        )
    vocabulary = {
        name: sorted({value for thing in items if thing and (value := getattr(thing, name))})
        for name in ("category", "merchant")
    }
    manifest = {
        "data_card_id": dataset.card.id,
        "options": config.model_dump(mode="json"),
        "knowledge": known.bound.options,
        "skipped": asked.skipped,
    }
    groups = _groups(asked.samples, known.store)
    write_samples(out, groups, vocabulary, manifest, overwrite=overwrite)
    return InstructionsReport(
        out=str(out),
        data_card_id=dataset.card.id,
        samples=dict(Counter(sample.split for sample in asked.samples)),
        tasks=dict(Counter(s.task for s in asked.samples if s.split == "train")),
        skipped=asked.skipped,
        without_knowledge=asked.without_knowledge,
        vocabulary={name: len(values) for name, values in vocabulary.items()},
        seconds=round(time.monotonic() - begin, 3),
    )


def write_samples(
    out: Path,
    groups: Iterable[pa.Table],
    vocabulary: Mapping[str, Sequence[str]],
    manifest: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write a folder of samples; groups: rows of `SCHEMA`. Equal rows give equal bytes.

    Raises:
        DataError: `out` exists.
    """
    with new_folder(out, overwrite=overwrite) as scratch:
        with pq.ParquetWriter(scratch / SAMPLES, SCHEMA, compression="zstd") as writer:
            for group in groups:
                writer.write_table(group)
        _write_json(scratch / VOCABULARY, vocabulary)
        sums = {name: sha256_file(scratch / name) for name in (SAMPLES, VOCABULARY)}
        _write_json(scratch / MANIFEST, {"format": 1, **manifest, "sha256": sums})


def _groups(samples: list[KeyedSample], store: KnowledgeStore) -> Iterator[pa.Table]:
    texts = store.texts(["key", "text"])
    text = dict(zip(texts["key"].to_pylist(), texts["text"].to_pylist(), strict=True))
    own = [name for name in SCHEMA.names if name != "knowledge"]
    for begin in range(0, len(samples), _ROWS_PER_GROUP):
        group = samples[begin : begin + _ROWS_PER_GROUP]
        columns: dict[str, Any] = {name: [getattr(s, name) for s in group] for name in own}
        columns["knowledge"] = [text[sample.key] for sample in group]
        columns = {name: columns[name] for name in SCHEMA.names}
        yield pa.table(columns, schema=SCHEMA)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
