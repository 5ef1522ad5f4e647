"""The nightly job of HKFR's stage 3: knowledge and a tuned language model → dated features (§2.4, §7).

OUT/date=YYYY-MM-DD/*.parquet    the feature table, read by `features.tables`
OUT/projection.safetensors       fitted by the first build, used by all later ones
OUT/hkfr.json                    what the features are: another model or options need another OUT
"""  # noqa: E501

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from raysys.data.feature_table import dated_folder, write_features
from raysys.data.files import write_text
from raysys.data.manifest import canonical_json
from raysys.data.mapping import progress_line
from raysys.data.split import stable_hash
from raysys.errors import ConfigError, DataError
from raysys.hkfr.answering import open_instructed
from raysys.hkfr.exported import TextValues, values_before
from raysys.hkfr.features import FeatureOptions, FeatureReader, Question
from raysys.hkfr.known import Knowledge
from raysys.hkfr.projection import Projection, load_projections, save_projections
from raysys.hkfr.prompts import Prompts
from raysys.hkfr.samples import Samples
from raysys.hkfr.scoring import Scorer, scores_by_cache
from raysys.llm.backbones import Backbone
from raysys.llm.encoder import compute_dtype
from raysys.llm.tokens import TextTokens
from raysys.training.identity import differences

Floats = npt.NDArray[np.float32]
SPEC, PROJECTION = "hkfr.json", "projection.safetensors"
_TEXTS_AT_ONCE = 1024
_ONE_DAY = timedelta(days=1)


class FeaturesReport(BaseModel):
    """What was built. dates: written now; rows: of them; texts: distinct ones on them; read: those
    the model had to read; cut: prompts that lost facts; widths: numbers of each feature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    source: str
    dates: tuple[date, ...]
    kept_dates: int
    users: int
    rows: int
    texts: int
    read: int
    cut: int
    widths: dict[str, int]
    seconds: float


def build_features(
    model: str,
    knowledge: Path,
    samples: Path,
    out: Path,
    options: FeatureOptions = FeatureOptions(),  # noqa: B008 - frozen
) -> FeaturesReport:
    """Write the features of every day of knowledge that OUT has not.

    Knowledge of day D is of events before it: its features are dated D − 1, the last day they
    know, and a ranker reads them from D on. Texts that a user has kept since the date before are
    not read again.

    model: run folder of llm/instruct, or a backbone spec for an untuned one. samples: the folder
    the model was tuned on: its instructions and candidates, whose users fit the projection.

    Raises:
        ArtifactError: a damaged run, or one of another recipe.
        ConfigError: OUT holds other features; a task that is not asked in the samples.
        DataError: damaged knowledge or samples; none that may fit the projection.
    """
    begin = time.monotonic()
    opened, known = Samples.open(samples), Knowledge(knowledge)
    questions = [Question.of(opened, task) for task in options.tasks]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.with_name(f".{out.name}.lock"), timeout=0):
            return _build(model, known, opened, out, options, questions, begin)
    except Timeout as error:
        raise DataError(f"{out}: another process is building these features") from error


def _build(
    model: str,
    known: Knowledge,
    samples: Samples,
    out: Path,
    options: FeatureOptions,
    questions: Sequence[Question],
    begin: float,
) -> FeaturesReport:
    backbone, longest = open_instructed(model)
    spec: dict[str, Any] = {
        "format": 1,
        "model": backbone.sha256,
        "max_tokens": longest,
        "options": options.model_dump(mode="json"),
        "samples": samples.manifest.sha256,
        "instructions": {question.task: question.instruction for question in questions},
    }
    source = hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:16]
    _refuse_others(out, spec)
    days = [day for day in known.folders if not dated_folder(out, day - _ONE_DAY).is_dir()]
    counts = {"kept_dates": len(known.folders) - len(days), "users": 0, "rows": 0, "texts": 0}
    widths: dict[str, int] = {}
    asked = cut = 0
    if days:
        reader = _reader(backbone, longest, questions, options)
        ask = _Projected(reader, options)
        values = fitted = None
        if (out / PROJECTION).is_file():
            ask.projections = load_projections(out / PROJECTION)
            values = values_before(out, source, days[0] - _ONE_DAY)
        else:
            fitted = ask.fit(known, samples)
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / SPEC, json.dumps(spec, indent=1, ensure_ascii=False) + "\n")
            save_projections(out / PROJECTION, ask.projections)
        for day in days:
            table = known.of(day)
            texts = dict(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True))
            values = _values(texts, (values, fitted), ask)
            rows = values.rows(table, source)
            write_features(out, day - _ONE_DAY, rows)
            widths = {name: int(array.shape[1]) for name, array in values.arrays.items()}
            for name, count in (("users", table), ("rows", rows), ("texts", texts)):
                counts[name] += len(count)
        asked, cut = ask.read, reader.prompts.cut
    return FeaturesReport(
        out=str(out),
        source=source,
        dates=tuple(day - _ONE_DAY for day in days),
        read=asked,
        cut=cut,
        widths=widths,
        seconds=round(time.monotonic() - begin, 3),
        **counts,
    )


def _values(
    texts: dict[str, str], known: Sequence[TextValues | None], ask: "_Projected"
) -> TextValues:
    """Of these texts by key; those whose values are not known are asked."""
    left, parts = list(texts), []
    for values in known:
        here = [key for key in left if values is not None and key in values.row]
        if values is not None and here:
            parts.append(values.take(here))
            left = [key for key in left if key not in values.row]
    if left:
        parts.append(TextValues.of(left, ask([texts[key] for key in left])))
    return reduce(TextValues.joined, parts)


def _refuse_others(out: Path, spec: dict[str, Any]) -> None:
    """Refuse to go on with another model or options than OUT has been begun with."""
    file = out / SPEC
    if file.is_file():
        begun = json.loads(file.read_text(encoding="utf-8"))
        if begun != spec:
            raise ConfigError(
                f"{out} holds other features; different: {differences(begun, spec)}. "
                "Choose another --out"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} holds something else; choose another --out")


def _reader(
    backbone: Backbone, longest: int, questions: Sequence[Question], options: FeatureOptions
) -> FeatureReader:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = TextTokens(backbone.tokenizer(), longest)
    model = backbone.causal_model(device, compute_dtype("auto", device))
    scorer = Scorer(model, tokens.end, tokens.pad)
    scores_by_cache(scorer)
    return FeatureReader(scorer, Prompts(tokens), questions, options)


class _Projected:
    """What the reader gives, projected. read: texts it was asked."""

    def __init__(self, reader: FeatureReader, options: FeatureOptions) -> None:
        self.reader, self.options = reader, options
        self.read = 0
        self.projections: dict[str, Projection] = {}

    def __call__(self, texts: Sequence[str]) -> dict[str, Floats]:
        return self._reduced(self._raw(texts))

    def fit(self, known: Knowledge, samples: Samples) -> TextValues | None:
        """Fit the projections; gives the values of the texts that were read for that, if any."""
        widths = self.options.widths()
        if not widths:
            return None
        texts = _training_texts(known, samples, self.options.fit_texts)
        raw = self._raw(list(texts.values()))
        self.projections = {
            name: Projection.fit(raw[name], width, self.options.projection, self.options.seed)
            for name, width in widths.items()
        }
        return TextValues.of(list(texts), self._reduced(raw))

    def _raw(self, texts: Sequence[str]) -> dict[str, Floats]:
        parts = []
        with progress_line() as line:
            for begin in line.track(range(0, len(texts), _TEXTS_AT_ONCE), description="asking"):
                parts.append(self.reader(texts[begin : begin + _TEXTS_AT_ONCE]))
        self.read += len(texts)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _reduced(self, raw: dict[str, Floats]) -> dict[str, Floats]:
        by_name = self.projections
        return {name: by_name[name](x) if name in by_name else x for name, x in raw.items()}


def _training_texts(known: Knowledge, samples: Samples, limit: int) -> dict[str, str]:
    """By key, knowledge of training users of days that have a training sample or one after them;
    at most `limit`, chosen by a hash."""
    train = samples.table.filter(pc.equal(samples.table["split"], "train"))
    users = train["user_id"].unique()
    last = pc.max(train["ts"].cast(pa.int64())).as_py()
    end = date.max if last is None else datetime.fromtimestamp(last / 1e6, UTC).date()
    found: dict[str, str] = {}
    for day in known.folders:
        if day <= end:
            table = known.of(day)
            table = table.filter(pc.is_in(table["user_id"], value_set=users))
            found |= dict(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True))
    if not found:
        raise DataError(
            f"{known.path}: no knowledge of users of {samples.path} up to its last training "
            "sample, which the projection is fitted on; build knowledge of those days too"
        )
    keys = np.array(sorted(found))
    chosen = keys[np.argsort(stable_hash(keys, 0), kind="stable")[:limit]]
    return {key: found[key] for key in sorted(chosen.tolist())}
