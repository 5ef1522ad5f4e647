"""The scene of one request as it comes in, and values that a served model learns while it runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from raysys.artifacts.predictor import Predictor
from raysys.artifacts.run import RunConfig
from raysys.data.contexts import ContextCodec
from raysys.errors import ArtifactError
from raysys.larr.ranker import LarrDIN, LarrFit
from raysys.larr.scene import SceneLookup


def scene_fit(config: RunConfig, run: Path) -> LarrFit:
    """What the run's scene vectors were made with, if the encoder of today still makes them.

    Raises:
        ArtifactError: a run without a scene vector, one that is a placebo or has learned its
            vectors, or an encoder whose files are others than when the run was trained.
    """
    if "larr" not in config.model_options:
        raise ArtifactError(
            f"models.scene: {run} was trained by {config.recipe}, which has no scene vector; "
            "leave models.scene out"
        )
    fitted = LarrFit.model_validate(config.model_options["larr"])
    if fitted.options.placebo is not None:
        raise ArtifactError(
            f"models.scene: {run} is the placebo {fitted.options.placebo}, whose vectors no "
            "encoder makes; leave models.scene out"
        )
    if not fitted.options.frozen:
        raise ArtifactError(
            f"models.scene: {run} was trained with larr.frozen=false, and no encoder makes its "
            "vectors; leave models.scene out"
        )
    if fitted.encoder.identity() != fitted.identity:
        raise ArtifactError(
            f"models.scene: the encoder {fitted.encoder.backbone} is not the one that {run} was "
            "trained with, its files have changed; train again, or leave models.scene out"
        )
    return fitted


class Sentence(NamedTuple):
    """What a request says of one feature. text: None where a value is missing; values: context
    feature → value in words."""

    name: str
    template: str
    text: str | None
    values: dict[str, str | None]


def told(lookup: SceneLookup, context: Mapping[str, Any]) -> list[Sentence]:
    """The K' sentences of a request's context; no vector is looked at."""
    assert lookup.codec is not None
    words = {f.name: f.word(context.get(f.name)) for f in lookup.codec.features}
    verbaliser = lookup.verbaliser
    return [
        Sentence(name, template, text, {context: words[context] for context in contexts})
        for name, template, contexts, text in zip(
            verbaliser.names,
            verbaliser.template_ids,
            verbaliser.contexts,
            verbaliser.texts(words),
            strict=True,
        )
    ]


def learn_values(
    predictor: Predictor, sentences: Sequence[Sentence], vectors: npt.NDArray[np.float32]
) -> None:
    """Answer requests with these sentences by vectors [n, D] from now on.

    Values that no vocabulary has get codes behind all others; IDs they have none.
    """
    model = predictor.model
    assert isinstance(model, LarrDIN)
    texts = [str(sentence.text) for sentence in sentences]
    model.scene.add([s.name for s in sentences], texts, torch.from_numpy(np.array(vectors)))
    features = []
    for feature in predictor.codec.features:
        said = dict.fromkeys(s.values.get(feature.name) for s in sentences)
        fresh = tuple(v for v in said if v is not None and v not in feature.values)
        if feature.kind == "categorical" and fresh:
            feature = feature.model_copy(update={"values": (*feature.values, *fresh)})
        features.append(feature)
    predictor.adopt(ContextCodec(features=tuple(features)))
