"""The scene of one request as it comes in, and values that a served model learns while it runs."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from raysys.artifacts.predictor import Predictor
from raysys.artifacts.run import RunConfig
from raysys.data.contexts import ContextCodec
from raysys.errors import ArtifactError, ConfigError
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


log = logging.getLogger(__name__)


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
) -> list[bool]:
    """Answer requests with these sentences by vectors [n, D] from now on; which [n] of them.

    Values that no vocabulary has get codes behind all others; IDs they have none. A sentence is
    left out if its values would make more combinations than can be looked up.
    """
    model = predictor.model
    assert isinstance(model, LarrDIN)
    codec, learned = predictor.codec, []
    for sentence in sentences:
        wider = _with(codec, sentence)
        try:
            model.scene.verbaliser.columns(wider)
        except ConfigError as error:
            log.warning("no vector for %r: %s", sentence.text, error)
            learned.append(False)
            continue
        codec = wider
        learned.append(True)
    rows = np.flatnonzero(learned)
    if len(rows):
        names = [sentences[row].name for row in rows]
        texts = [str(sentences[row].text) for row in rows]
        model.scene.add(names, texts, torch.from_numpy(np.array(vectors[rows])))
        predictor.adopt(codec)
    return learned


def _with(codec: ContextCodec, sentence: Sentence) -> ContextCodec:
    """The codec with the sentence's values."""
    features = []
    for feature in codec.features:
        value = sentence.values.get(feature.name)
        if feature.kind == "categorical" and value is not None and value not in feature.values:
            feature = feature.model_copy(update={"values": (*feature.values, value)})
        features.append(feature)
    return ContextCodec(features=tuple(features))
