"""Dense layers after pooling, as sentence-transformers lays them beside a model."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import Tensor, nn

from raysys.data.prepared import cache_root
from raysys.errors import ArtifactError
from raysys.llm.checksums import cached_sha256

MODULES = "modules.json"
# By the last part of the class name that a layer's config.json gives.
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "GELU": nn.GELU,
    "Identity": nn.Identity,
    "ReLU": nn.ReLU,
    "SiLU": nn.SiLU,
    "Tanh": nn.Tanh,
}


class Head:
    """The dense layers of a model folder, width D -> width out. `of` gives None where it has none.

    Raises:
        ArtifactError: a layer is missing, damaged or of an unknown kind.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self.files = [folder / name / "config.json" for name in names]
        self.files += [folder / name / "model.safetensors" for name in names]
        self.width = int(_json(folder / names[-1] / "config.json")["out_features"])
        self._names = names

    @classmethod
    def of(cls, folder: Path) -> "Head | None":
        """The head of a model folder."""
        steps = _json(folder / MODULES) if (folder / MODULES).is_file() else []
        names = [step["path"] for step in steps if str(step["type"]).endswith(".Dense")]
        return cls(folder, names) if names else None

    @property
    def identity(self) -> str:
        """Name of the projection in a key: it changes with the layers' weights and settings."""
        digest = hashlib.sha256()
        for file in self.files:
            if not file.is_file():
                raise ArtifactError(f"{file} is missing: {MODULES} beside it names that layer")
            digest.update(f"{file.name} {cached_sha256(file)}\n".encode())
        return f"dense:{digest.hexdigest()[:32]}"

    def load(self) -> nn.Sequential:
        """The layers, in float32."""
        layers: list[nn.Module] = []
        for name in self._names:
            config = _json(self.folder / name / "config.json")
            kind = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
            if kind not in _ACTIVATIONS:
                raise ArtifactError(
                    f"{self.folder / name}: activation {kind} is none of {', '.join(_ACTIVATIONS)}"
                )
            try:
                state = load_file(self.folder / name / "model.safetensors")
                weight: Tensor = state["linear.weight"]
                layer = nn.Linear(weight.shape[1], weight.shape[0], bias="linear.bias" in state)
                layer.load_state_dict({k.removeprefix("linear."): v for k, v in state.items()})
            except Exception as error:
                raise ArtifactError(f"{self.folder / name}: not a dense layer ({error})") from error
            layers += [layer.float(), _ACTIVATIONS[kind]()]
        return nn.Sequential(*layers).eval().requires_grad_(False)

    def without(self) -> Path:
        """The model folder as one that names no head, for engines that would apply it unasked."""
        name = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:24]
        target = cache_root() / "headless" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        files = [f for f in self.folder.iterdir() if f.is_file() and f.name != MODULES]
        wanted = {file.name: str(file.resolve()) for file in files}
        # Another job may be loading from it, so it is replaced only where it has to be.
        with FileLock(target.with_name(f"{name}.lock")):
            made = target.iterdir() if target.is_dir() else ()
            if {link.name: os.readlink(link) for link in made} == wanted:
                return target
            scratch = Path(tempfile.mkdtemp(dir=target.parent))
            try:
                for file, source in wanted.items():
                    os.symlink(source, scratch / file)
                shutil.rmtree(target, ignore_errors=True)
                os.rename(scratch, target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return target


def project(head: "nn.Sequential | None", pooled: Tensor, normalise: bool) -> Tensor:
    """Text vectors [n, D or out] of pooled ones [n, D]: through the head, to length one."""
    with torch.inference_mode():
        values = pooled.float() if head is None else head(pooled.float())
        return nn.functional.normalize(values, dim=-1) if normalise else values


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file}: not readable as JSON ({error})") from error
