"""Checkpoints that are either whole or not there, and never trusted unread.

`ROOT/step-NNNNNNNN/` holds safetensors and JSON files and a `manifest.json` with the size and
sha256 of each. A checkpoint is written beside its place, flushed to the disk, and renamed. The
newest one whose every byte agrees with its manifest is the one to continue from; others are
skipped, with a warning that names the file at fault.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from raysys.data.files import FULL, new_folder, sha256_file
from raysys.errors import ArtifactError, StorageFullError
from raysys.training.tensorfile import read_tensors, write_tensors

FORMAT = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose bytes were found to agree with its manifest."""

    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of `name`.safetensors, on the CPU."""
        return read_tensors(self.path / f"{name}.safetensors")

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Verify the checkpoint in folder `path`.

        Raises:
            ArtifactError: a file is missing, of another size, or of another sha256; names it.
        """
        manifest = _read_manifest(path / "manifest.json")
        for name, entry in manifest["files"].items():
            file = path / name
            if not file.is_file():
                raise ArtifactError(f"{file} is missing")
            size = file.stat().st_size
            if size != entry["bytes"]:
                raise ArtifactError(f"{file} has {size} bytes, its manifest says {entry['bytes']}")
            if sha256_file(file) != entry["sha256"]:
                raise ArtifactError(f"{file} is damaged: its sha256 is not the manifest's")
        return cls.trusted(path)

    @classmethod
    def trusted(cls, path: Path) -> "Checkpoint":
        """The checkpoint in `path`, which another worker has verified."""
        state = json.loads((path / "state.json").read_text())
        return cls(path, _step_of(path), state)


class CheckpointStore:
    """The checkpoints of one run. One process writes; any may read."""

    def __init__(self, root: Path, keep: int = 2, fence: Callable[[], None] | None = None) -> None:
        """Args:
        root: folder of the checkpoints; made on the first save.
        keep: how many of the newest stay, the best one besides.
        fence: called before each commit; raises if this process may no longer write.
        """
        self.root = root
        self.keep = keep
        self._fence = fence

    def below(self, name: str) -> "CheckpointStore":
        """A store of its own in the folder `name` of this one."""
        return CheckpointStore(self.root / name, self.keep, self._fence)

    def folder(self, step: int) -> Path:
        return self.root / f"step-{step:08d}"

    def save(
        self,
        step: int,
        tensors: dict[str, dict[str, Tensor]],
        state: dict[str, Any],
        best_step: int | None = None,
    ) -> Path:
        """Commit a checkpoint and drop those no longer needed.

        Args:
            step: optimiser steps done.
            tensors: file name without suffix → tensor name → tensor.
            state: anything JSON.
            best_step: a checkpoint to keep whatever its age.

        Raises:
            StorageFullError: the disk is full; nothing of this checkpoint stays.
        """
        target = self.folder(step)
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with new_folder(target, overwrite=True) as scratch:
                files = {
                    f"{name}.safetensors": write_tensors(scratch / f"{name}.safetensors", group)
                    for name, group in tensors.items()
                }
                text = json.dumps(state, indent=1, allow_nan=False).encode()
                (scratch / "state.json").write_bytes(text)
                files["state.json"] = (len(text), hashlib.sha256(text).hexdigest())
                _write_manifest(scratch / "manifest.json", files)
                if self._fence:
                    self._fence()
            _fsync(self.root)
        except (OSError, StorageFullError) as error:
            if isinstance(error, StorageFullError) or error.errno in FULL:
                raise StorageFullError(
                    f"no space left for the checkpoint {target}: free some space and run the "
                    f"same command again; {self._newest_words()}"
                ) from error
            raise
        self._prune(step, best_step)
        return target

    def latest(self) -> Checkpoint | None:
        """The newest valid checkpoint, or None. Damaged ones are skipped with a warning."""
        for path in reversed(self._paths()):
            try:
                return Checkpoint.open(path)
            except ArtifactError as error:
                log.warning("skipping the damaged checkpoint %s: %s", path.name, error)
        return None

    def sweep(self) -> None:
        """Remove what writers that were killed left half-written."""
        for path in self.root.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.root.glob("step-*") if path.name[5:].isdigit())

    def _newest_words(self) -> str:
        paths = self._paths()
        return f"the newest checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"

    def _prune(self, step: int, best_step: int | None) -> None:
        # A checkpoint of a later step is one that could not be continued from: it was damaged.
        paths = [path for path in self._paths() if _step_of(path) != best_step]
        usable = [path for path in paths if _step_of(path) <= step]
        for path in [*usable[: -self.keep], *(p for p in paths if _step_of(p) > step)]:
            shutil.rmtree(path)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write_manifest(path: Path, files: dict[str, tuple[int, str]]) -> None:
    body: dict[str, Any] = {
        "format": FORMAT,
        "files": {name: {"bytes": size, "sha256": sha} for name, (size, sha) in files.items()},
    }
    path.write_text(json.dumps({**body, "seal": _seal(body)}, indent=1))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
        seal = manifest.pop("seal")
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing") from None
    except (ValueError, KeyError, AttributeError):
        raise ArtifactError(f"{path} is damaged: not a manifest") from None
    if seal != _seal(manifest):
        raise ArtifactError(f"{path} is damaged: it does not agree with its seal")
    if manifest["format"] != FORMAT:
        raise ArtifactError(f"{path} has format {manifest['format']}, this version reads {FORMAT}")
    return manifest


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
