"""The run folder: a trained ranker that loads without its data set and without pickle.

config.json        format, module:class, model and recipe config, ids
model.safetensors  weights
features.json      fitted vocabularies
metrics.json       last metrics          metrics.jsonl  training log
env.json           versions              data_card.json what it was trained on
README.md          card for people
snapshot/          items, their frozen vectors, user histories if asked for, what the model adds
checksums.json     sha256 of all of the above but the metrics; written last, so a folder without it is unfinished
checkpoints/ indexes/ report/ scores/    beside them, not part of the model
"""  # noqa: E501

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from raysys.artifacts.ranker import Ranker, resolve
from raysys.data.catalogue import Catalogue
from raysys.data.columns import ColumnFolder
from raysys.data.features import FeatureSpace
from raysys.data.files import fsync_tree, scratch_folder, sha256_file
from raysys.data.histories import UNKNOWN_TS, Histories
from raysys.data.manifest import DataCard, canonical_json
from raysys.data.requests import Fit
from raysys.data.split import from_iso
from raysys.errors import ArtifactError

Model = TypeVar("Model", bound=BaseModel)

FORMAT = 1
_CHECKSUMS = "checksums.json"
_PACKAGES = ("raysys", "torch", "ray", "transformers", "numpy", "pandas", "pyarrow", "pydantic")


class RunConfig(BaseModel):
    """`config.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    model_id: str
    model: str  # module:class, raysys.* only
    # The fields of the ranker's own Config; the class named above validates them on loading.
    model_options: dict[str, Any]
    recipe: str
    recipe_options: dict[str, Any]
    data_card_id: str
    vectors: dict[str, dict[str, Any]] = {}  # field -> what the encoder was


@dataclass(frozen=True)
class LoadedRun:
    """A run folder opened for scoring."""

    path: Path
    config: RunConfig
    features: FeatureSpace
    data_card: DataCard
    model: Ranker
    catalogue: Catalogue
    items: pa.Table
    histories: Histories | None


def model_id(config: dict[str, Any], weights: Path, features: FeatureSpace) -> str:
    """First 12 hex digits of sha256 over config, weights and features."""
    parts = [canonical_json(config), sha256_file(weights), features.hash]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def environment() -> dict[str, Any]:
    """Versions that the result depends on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": versions,
    }


def save_run(
    path: Path,
    *,
    model: Ranker,
    model_options: BaseModel,
    features: FeatureSpace,
    items: pa.Table,
    vectors: dict[str, npt.NDArray[np.float32]],
    vector_specs: dict[str, dict[str, Any]],
    recipe: str,
    recipe_options: dict[str, Any],
    data_card: DataCard,
    card_text: str,
    histories: Histories | None = None,
) -> RunConfig:
    """Write the artefacts of a trained ranker into the run folder `path`.

    vectors: field -> [N, D] in the order of `items`. Files appear under their names only when
    complete; `checksums.json` comes last.

    Raises:
        StorageFullError: the disk is full; the folder is as it was.
    """
    with scratch_folder(path / "artifacts") as scratch:
        weights = scratch / "model.safetensors"
        state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
        weights.write_bytes(to_safetensors(state))
        body: dict[str, Any] = dict(
            format=FORMAT,
            model=f"{type(model).__module__}:{type(model).__name__}",
            model_options=model_options.model_dump(mode="json"),
            recipe=recipe,
            recipe_options=recipe_options,
            data_card_id=data_card.id,
            vectors=vector_specs,
        )
        config = RunConfig(model_id=model_id(body, weights, features), **body)
        _json(scratch / "config.json", config.model_dump(mode="json"))
        _json(scratch / "features.json", features.model_dump(mode="json"))
        _json(scratch / "data_card.json", data_card.model_dump(mode="json"))
        _json(scratch / "env.json", environment())
        (scratch / "README.md").write_text(card_text, encoding="utf-8")
        snapshot = scratch / "snapshot"
        snapshot.mkdir()
        pq.write_table(items, snapshot / "items.parquet", compression="zstd")
        for name, values in vectors.items():
            ColumnFolder(snapshot / "vectors").write(name, values)
        if histories is not None:
            (snapshot / "histories").mkdir()
            histories.save(snapshot / "histories")
        model.save_snapshot(snapshot)
        _commit(scratch, path)
    return config


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _commit(scratch: Path, path: Path) -> None:
    files = sorted(p for p in scratch.rglob("*") if p.is_file())
    sums = {p.relative_to(scratch).as_posix(): sha256_file(p) for p in files}
    names = sorted(child.name for child in scratch.iterdir())
    _json(scratch / _CHECKSUMS, sums)
    fsync_tree(scratch)
    (path / _CHECKSUMS).unlink(missing_ok=True)
    for name in names:
        if (scratch / name).is_dir():
            shutil.rmtree(path / name, ignore_errors=True)
    for name in [*names, _CHECKSUMS]:
        os.replace(scratch / name, path / name)


def verify_run(path: Path) -> None:
    """Check every artefact against its checksum.

    Raises:
        ArtifactError: unfinished, or a file is missing or damaged; names the file.
    """
    sums = path / _CHECKSUMS
    if not sums.is_file():
        raise _no_run(path, _CHECKSUMS)
    for name, digest in _read_json(sums).items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(
                f"{file}: missing; restore it, or run the same train command again to mend the run"
            )
        if sha256_file(file) != digest:
            raise ArtifactError(
                f"{file}: damaged, its sha256 is not the one of {_CHECKSUMS}; "
                "restore it, or run the same train command again to mend the run"
            )


def _no_run(path: Path, missing: str) -> ArtifactError:
    """What a folder is in which `missing` is missing."""
    if not path.is_dir():
        return ArtifactError(f"{path}: no such run folder")
    if (path / "manifest.json").is_file():
        return ArtifactError(f"{path} is a data set folder, not a run folder")
    if missing == _CHECKSUMS or (path / "checkpoints").is_dir():
        return ArtifactError(
            f"{path}: {missing} is missing: training has not finished here; "
            "run the same train command again to finish it"
        )
    return ArtifactError(f"{path} is no run folder: {missing} is missing")


def read_config(path: Path) -> RunConfig:
    """`config.json` of a run folder, its format checked.

    Raises:
        ArtifactError: missing, damaged or of another format.
    """
    file = path / "config.json"
    if not file.is_file():
        raise _no_run(path, file.name)
    raw = _read_json(file)
    if raw.get("kind") == "language":
        raise ArtifactError(
            f"{path} holds a language model, no ranker; use it as the backbone dir:{path}/hf"
        )
    if raw.get("format") != FORMAT:
        raise ArtifactError(
            f"{file}: run format {raw.get('format')}, this raysys reads {FORMAT}; train again"
        )
    return _fitting(RunConfig, raw, file)


def read_features(path: Path) -> FeatureSpace:
    """`features.json` of a run folder.

    Raises:
        ArtifactError: damaged.
    """
    return _fitting(FeatureSpace, _read_json(path / "features.json"), path / "features.json")


def read_card(path: Path) -> DataCard:
    """`data_card.json` of a run folder.

    Raises:
        ArtifactError: damaged.
    """
    return _fitting(DataCard, _read_json(path / "data_card.json"), path / "data_card.json")


def read_fit(path: Path) -> Fit:
    """What the model of a run folder asks of requests.

    Raises:
        ArtifactError: damaged.
    """
    return request_fit(read_features(path), read_card(path))


def request_fit(features: FeatureSpace, card: DataCard) -> Fit:
    """What a model trained with these features on these data asks of requests."""
    since = from_iso(card.time_span[0], field="time_span") if card.time_span else UNKNOWN_TS
    return Fit(features.contexts, since)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ArtifactError(f"{file}: a JSON object was expected")
    return raw


def _fitting(kind: type[Model], values: dict[str, Any], file: Path) -> Model:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{file}: {where}: {first['msg']}; damaged, or written by another version of raysys"
        ) from error


def load_run(path: Path | str, *, indexes: bool = True) -> LoadedRun:
    """Open a run folder: verified, built from its own config, weights loaded.

    indexes: false leaves RUN/indexes aside, for whoever makes it anew.

    Raises:
        ArtifactError: anything missing, damaged or of another format.
    """
    path = Path(path)
    verify_run(path)
    config = read_config(path)
    kind = resolve(config.model)
    features = read_features(path)
    options = _fitting(kind.Config, config.model_options, path / "config.json")
    card = read_card(path)
    model = kind.from_config(options, features)
    try:
        model.load_state_dict(load_file(path / "model.safetensors"))
    except (SafetensorError, RuntimeError) as error:
        raise ArtifactError(
            f"{path}/model.safetensors: does not fit config.json ({error})"
        ) from error
    items = pq.read_table(path / "snapshot" / "items.parquet")
    columns = ColumnFolder(path / "snapshot" / "vectors") if config.vectors else None
    vectors = {name: columns.read(name) for name in config.vectors} if columns else {}
    catalogue = Catalogue.build(items, features, vectors)
    model.bind(catalogue)
    model.open_snapshot(path / "snapshot")
    if indexes:
        model.open_indexes(path / "indexes")
    stored = path / "snapshot" / "histories"
    return LoadedRun(
        path=path,
        config=config,
        features=features,
        data_card=card,
        model=model,
        catalogue=catalogue,
        items=items,
        histories=Histories.load(stored) if stored.is_dir() else None,
    )
