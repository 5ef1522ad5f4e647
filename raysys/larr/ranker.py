"""DIN with a scene vector: frozen text vectors, an encoder, alignment with the ID tower."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from raysys.ctr.din import DIN, DINConfig, Inputs
from raysys.data.batch import Batch
from raysys.data.contexts import ContextCodec
from raysys.data.features import FeatureSpace
from raysys.errors import ArtifactError
from raysys.larr.alignment import aligned
from raysys.larr.config import LarrConfig
from raysys.larr.encoder import SceneEncoder
from raysys.larr.scene import SceneLookup
from raysys.larr.table import SceneTable
from raysys.larr.values import TrainedValues
from raysys.larr.verbalise import Verbaliser, Wordings
from raysys.llm.encoder import EncoderSpec
from raysys.llm.keys import VectorIdentity
from raysys.training import World

Target = Literal["clicked", "user", "scene_mean"]


class LarrFit(BaseModel):
    """Stored with the options of a ranker, so that it scores without data set, table or LLM.

    trained: the context values of the training split, which alone have ID embeddings; the run's
    features hold all values whose texts have vectors. wordings: how values are told. encoder,
    identity: whose vectors they are; width D. stop_steps: so many calls of the loss give the ID
    tower no gradient of the alignment, −1: none does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    options: LarrConfig
    trained: ContextCodec
    wordings: Wordings
    encoder: EncoderSpec
    identity: VectorIdentity
    width: int
    stop_steps: int


class LarrDINConfig(DINConfig):
    """Options of `LarrDIN`; `larr` is fitted, not chosen."""

    larr: LarrFit


class LarrDIN(DIN):
    """DIN that is also told the scene as m [B, Di], a vector in the space of its items.

    m is the same for all candidates of a request and costs one encoder pass. The language model
    has no part in it: vectors are looked up (`SceneLookup`).

    Args (beside those of `DIN`):
        scene: makes the look-up; encoder: makes the encoder from K and Di; both are called last,
            so that the weights of DIN begin alike.
        trained: see `LarrFit`.
        use: m in the towers and the attention's query, in the towers only, or nowhere.
        weight, temperature, target, stop_steps: of the alignment, see `AlignmentOptions`.
    """

    Config = LarrDINConfig

    def __init__(
        self,
        item_cardinalities: Sequence[int],
        context_cardinalities: Sequence[int],
        vector_widths: dict[str, int],
        *,
        scene: Callable[[], SceneLookup],
        encoder: Callable[[int, int], SceneEncoder],
        trained: ContextCodec,
        use: Literal["query", "concat", "none"],
        weight: float,
        temperature: float,
        target: Target,
        stop_steps: int,
        match: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            item_cardinalities,
            context_cardinalities,
            vector_widths,
            match=match,
            blocks=0 if use == "none" else 1 + match,
            **options,
        )
        self.contexts = TrainedValues(self.contexts, trained)
        self.scene = scene()
        self.scene_encoder = encoder(len(self.scene.names), self.items.width)
        self.use = use
        self.weight = weight
        self.temperature = temperature
        self.target = target
        self.stop_steps = stop_steps
        # Counts with the weights, so that a resumed run opens the ID tower at the same step.
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # Items clicked in each scene of the training days [SCENES, n]; only training needs them.
        self.scene_items: Tensor | None
        self.register_buffer("scene_items", None, persistent=False)

    @classmethod
    def from_config(cls, config: LarrDINConfig, features: FeatureSpace) -> Self:  # type: ignore[override]
        """Build for fitted features, whose contexts hold the values of all texts."""
        narrow = features.model_copy(update={"contexts": config.larr.trained})
        model = super().from_config(config, narrow)
        model.adopt(features.contexts)
        return model

    @classmethod
    def arguments(cls, config: LarrDINConfig, features: FeatureSpace) -> dict[str, Any]:  # type: ignore[override]
        """See `DIN`."""
        fitted, chosen = config.larr, config.larr.options
        encoder, alignment = chosen.encoder, chosen.alignment
        return {
            **super().arguments(config, features),
            "scene": partial(
                SceneLookup, chosen, Verbaliser(chosen, fitted.wordings), fitted.width
            ),
            "encoder": lambda count, out: SceneEncoder(
                count,
                fitted.width,
                out,
                hidden=encoder.width,
                heads=encoder.heads,
                layers=encoder.layers,
                dropout=encoder.dropout,
                head=encoder.head,
                aggregate=encoder.aggregate,
                attend_missing=encoder.missing == "zero",
            ),
            "trained": fitted.trained,
            "use": chosen.use,
            "weight": alignment.weight,
            "temperature": alignment.temperature,
            "target": alignment.target,
            "stop_steps": fitted.stop_steps,
        }

    def train(self, mode: bool = True) -> Self:
        """A scene encoder that is fitted already stays as it is."""
        super().train(mode)
        if not any(weight.requires_grad for weight in self.scene_encoder.parameters()):
            self.scene_encoder.eval()
        return self

    def adopt(self, codec: ContextCodec) -> None:
        """See `Ranker`: values beyond those of training have a scene vector and no ID."""
        self.contexts.adopt(codec)
        self.scene.adopt(codec)

    def save_snapshot(self, folder: Path) -> None:
        """See `Ranker`: the vectors of the scene."""
        assert self.scene.table is not None
        self.scene.table.save(folder)

    def open_snapshot(self, folder: Path) -> None:
        """See `Ranker`."""
        taste = tuple(feature.name for feature in self.scene.tastes)
        recent = tuple(feature.name for feature in self.scene.recents)
        table = SceneTable.load(folder, taste, recent)
        if table.vectors.shape[1:] != (self.scene.width,):
            raise ArtifactError(
                f"{folder}: scene vectors of width {table.vectors.shape[1]}, the model takes "
                f"{self.scene.width}"
            )
        self.scene.bind(table)

    def scene_vector(self, batch: Batch) -> Tensor:
        """m [B, Di]."""
        # The same for all orders of the candidates.
        draw = batch.candidates.sum(1) + batch.history_length
        found = self.scene(batch.context, batch.history_items, batch.history_mask, draw)
        m: Tensor = self.scene_encoder(*found)
        return m

    def inputs(self, batch: Batch) -> Inputs:
        """See `DIN`: with m."""
        inputs = super().inputs(batch)
        if self.use == "none":
            return inputs
        m = self.scene_vector(batch).unsqueeze(1)
        blocks = [m.expand_as(inputs.candidates)]
        if self.match:
            blocks.append(inputs.candidates * m)
        pairs = inputs.pairs
        if self.use == "query":
            item = self.items.width
            query = torch.cat([pairs.query[..., :item] + m, pairs.query[..., item:]], -1)
            pairs = pairs._replace(query=query)
        return inputs._replace(pairs=pairs, blocks=tuple(blocks))

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """L = BCE + η·L_ali, both means over the global batch (see `alignment`)."""
        inputs = self.inputs(batch)
        loss, weight = self.loss_of(inputs, batch)
        if not self.weight:
            return loss, weight
        m = inputs.blocks[0][:, 0] if inputs.blocks else self.scene_vector(batch)
        return loss + self.weight * self.alignment(batch, m, weight), weight

    def alignment(self, batch: Batch, m: Tensor, weight: Tensor) -> Tensor:
        """L_ali as this worker's part of a sum that the loop divides by the weight of all.

        m [B, Di]; weight: that of this worker's rows. Counts as a step while training.
        """
        assert batch.clicks is not None
        request, column = torch.nonzero((batch.clicks > 0) & batch.candidate_mask, as_tuple=True)
        clicked = batch.candidates[request, column]
        if self.target != "clicked":
            # One pair a request: its target is the same whichever item was clicked.
            request, first = _firsts(request)
            clicked = clicked[first]
        targets, identity = self._targets(batch, request, clicked)
        open_ = 0 <= self.stop_steps <= int(self.steps)
        if self.training:
            self.steps += 1
        if not open_:
            targets = targets.detach()
        world = World.current("cpu")
        found = aligned(world, m[request], targets, identity, request, self.temperature)
        # The loop divides by the rows of all workers; L_ali is a mean over the pairs of all.
        rows = float(world.gather_rows(weight.detach().reshape(1).cpu()).sum())
        return found.total * rows / max(1, found.pairs)

    def _targets(self, batch: Batch, request: Tensor, clicked: Tensor) -> tuple[Tensor, Tensor]:
        """c [n, Di] in the ID tower of pairs with request [n], and what each of them is [n]."""
        if self.target == "clicked":
            return self.items(clicked), clicked
        if self.target == "user":
            rows, mask = batch.history_items[request], batch.history_mask[request]
            # Who has the same past is the same user.
            identity = (rows * (torch.arange(rows.shape[1], device=rows.device) + 1)).sum(1)
        else:
            assert self.scene_items is not None
            identity = self._scene_rows(batch)[request]
            rows = self.scene_items[identity]
            mask = rows != 0
        real = mask.unsqueeze(-1).to(self.items.fields.weight.dtype)
        mean = (self.items(rows) * real).sum(1) / real.sum(1).clamp(min=1)
        return mean, identity

    def _scene_rows(self, batch: Batch) -> Tensor:
        assert self.scene.codec is not None
        out = torch.zeros_like(batch.context[:, 0])
        for column, feature in enumerate(self.scene.codec.features):
            out = out * feature.cardinality + batch.context[:, column]
        return out % SCENES


# A scene is a combination of all context values; beyond so many, some share a row.
SCENES = 8192


def _firsts(request: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct values of ascending request [n], and where each comes first."""
    distinct, counts = torch.unique_consecutive(request, return_counts=True)
    return distinct, counts.cumsum(0) - counts
