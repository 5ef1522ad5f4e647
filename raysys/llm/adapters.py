"""LoRA adapters: merged into their base once, so that every engine sees one plain folder.

A merged model costs nothing per token, and takes what an adapter may hold beside LoRA matrices
(rows of new special tokens, whole modules), which serving engines do not load.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from raysys.data.files import new_folder
from raysys.data.prepared import cache_root
from raysys.errors import ArtifactError, ConfigError
from raysys.llm.backbones import Backbone, BackboneSpec
from raysys.llm.checksums import cached_sha256

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_DONE = "DONE"


def adapter_sha256(adapter: str | Path) -> str:
    """Identity of an adapter folder: its weights and its configuration.

    Raises:
        ConfigError: no such folder.
        ArtifactError: it holds no adapter in safetensors.
    """
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"adapter {adapter}: no such folder")
    digest = hashlib.sha256()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ArtifactError(
                f"adapter {adapter}: {name} is missing: no folder that peft's save_pretrained wrote"
            )
        digest.update(f"{name} {cached_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def merged_backbone(base: Backbone, adapter: str | Path) -> Backbone:
    """`base` with the adapter's weights in it, as a folder of the cache.

    The tokenizer is the adapter's where it has one, as special tokens may have been added.

    Raises:
        ConfigError: no such folder, or the adapter belongs to another base.
        ArtifactError: damaged weights, or an adapter of another kind.
    """
    name = f"{base.sha256[:16]}-{adapter_sha256(adapter)[:16]}"
    folder = cache_root() / "merged" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{name}.lock")):
        if not (folder / _DONE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            with new_folder(folder) as scratch:
                _merge(base, Path(adapter).expanduser(), scratch)
                (scratch / _DONE).touch()
    return Backbone(base.spec, folder)


def _merge(base: Backbone, adapter: Path, out: Path) -> None:
    from peft import PeftModel
    from transformers import AutoTokenizer

    stated = str(_config(adapter).get("base_model_name_or_path") or "")
    _refuse_other_base(base, adapter, stated)
    model = _with_head(base)
    tokenizer = base.tokenizer()
    if (adapter / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(adapter, trust_remote_code=False)
    rows = len(model.get_input_embeddings().weight)
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    try:
        tuned = PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError, KeyError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise ConfigError(
            f"adapter {adapter} does not fit {base.spec}: {reason[:300]}; it was made for "
            f"{stated or 'another base'}"
        ) from error
    tuned.merge_and_unload().save_pretrained(out)
    tokenizer.save_pretrained(out)


def _refuse_other_base(base: Backbone, adapter: Path, stated: str) -> None:
    """Compare with the base that the adapter names, where that is at hand."""
    if (Path(stated) / "config.json").is_file():
        other = Backbone(BackboneSpec("dir", stated), Path(stated)).sha256 != base.sha256
    else:
        other = base.spec.scheme == "hub" and bool(stated) and stated != base.spec.name
    if other:
        raise ConfigError(f"adapter {adapter} was made for {stated}, not for {base.spec}")


def _with_head(base: Backbone) -> Any:
    """The class the folder itself names, because an adapter's weights are named after it."""
    import transformers

    names = base.config.get("architectures") or []
    kind = getattr(transformers, names[0], None) if names else None
    if kind is None:
        return base.model(torch.device("cpu"), torch.float32)
    try:
        return kind.from_pretrained(base.path, dtype="auto", use_safetensors=True)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{base.spec}: its weights do not load ({error})") from error


def _config(adapter: Path) -> dict[str, Any]:
    file = adapter / ADAPTER_CONFIG
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file}: not valid JSON ({error})") from error
    return config
