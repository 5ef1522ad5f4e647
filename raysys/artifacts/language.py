"""The run folder of a tuned language model.

config.json     format, kind "language", module:class, recipe config, backbone, ids
hf/             the model: a plain Hugging Face folder (`dir:RUN/hf`)
adapter/        its LoRA, if that was to be kept apart
env.json, data_card.json, README.md, checksums.json    as for a ranker
metrics.json    figures before and after      metrics.jsonl  training log
checkpoints/    beside them, not part of the model
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysys.artifacts.run import FORMAT, _commit, _json, environment
from raysys.data.files import scratch_folder, sha256_file, write_text
from raysys.data.manifest import DataCard, canonical_json


def save_language_run(
    path: Path,
    write: Callable[[Path], None],
    *,
    model: str,
    recipe: str,
    recipe_options: dict[str, Any],
    backbone: dict[str, Any],
    data_card: DataCard,
    card_text: str,
    metrics: dict[str, Any],
) -> str:
    """Write the artefacts of a tuned language model into the run folder `path`; gives its id.

    write: puts `hf` (and what belongs beside it) into the folder it is given. model: the
    `module:class` that was trained. backbone: what it began as. Files appear under their names
    only when complete; `checksums.json` comes last.

    Raises:
        StorageFullError: the disk is full; the folder is as it was.
    """
    with scratch_folder(path / "artifacts") as scratch:
        write(scratch)
        licence = backbone["licence"]
        card = f"---\nlicense: {licence}\n---\n\n{card_text}" if licence != "unknown" else card_text
        (scratch / "hf" / "README.md").write_text(card, encoding="utf-8")
        body: dict[str, Any] = dict(
            format=FORMAT,
            kind="language",
            model=model,
            recipe=recipe,
            recipe_options=recipe_options,
            backbone=backbone,
            data_card_id=data_card.id,
        )
        weights = [
            f"{file.relative_to(scratch).as_posix()} {sha256_file(file)}"
            for file in sorted(scratch.rglob("*.safetensors"))
        ]
        # Where the backbone lay does not change the model: its sha256 is in there.
        placeless = {**body, "backbone": {k: v for k, v in backbone.items() if k != "spec"}}
        parts = [canonical_json(placeless), *weights]
        model_id = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
        _json(scratch / "config.json", {**body, "model_id": model_id})
        _json(scratch / "data_card.json", data_card.model_dump(mode="json"))
        _json(scratch / "env.json", environment())
        (scratch / "README.md").write_text(card_text, encoding="utf-8")
        write_text(path / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        _commit(scratch, path)
    return model_id
