"""How a model is trained: one frozen config, the same for every recipe."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Positive = Annotated[int, Field(ge=1)]


class EarlyStopping(BaseModel):
    """Stop when `metric` of `Task.validate` has not improved for `patience` epochs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    mode: Literal["max", "min"] = "max"
    patience: Positive = 2
    min_delta: float = Field(default=0.0, ge=0.0)

    def improves(self, value: float, best: float | None) -> bool:
        """True if `value` beats `best` by more than `min_delta` (always, without a best)."""
        if best is None:
            return True
        gain = value - best if self.mode == "max" else best - value
        return gain > self.min_delta


class TrainConfig(BaseModel):
    """What the loop needs; the global batch belongs to the loader.

    The fields in `EXECUTION` say where and how safely a run is carried out, not what it
    computes: they may differ between a run and its resumption, so they are left out of the
    run's identity (`raysys.training.identity`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    EXECUTION: ClassVar[frozenset[str]] = frozenset(
        {
            "workers",
            "parallel",
            "threads_per_worker",
            "device",
            "prefetch",
            "checkpoint_every_steps",
            "checkpoint_every_seconds",
            "keep_checkpoints",
            "max_failures",
        }
    )

    epochs: Positive = 1
    max_steps: Positive | None = Field(
        default=None, description="stop after this many optimiser steps, mid-epoch if need be"
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1)

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="of adamw")
    eps: float = Field(default=1e-8, gt=0, description="of adamw")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled; matrices only, never biases or embeddings"
    )
    schedule: Literal["constant", "cosine", "linear", "late"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    final_lr_fraction: float = Field(default=0.0, ge=0, le=1)
    clip_norm: float | None = Field(default=None, gt=0)
    accumulation: Positive = Field(default=1, description="micro batches per worker and step")
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    early_stopping: EarlyStopping | None = None

    log_every_steps: Positive = 50
    checkpoint_every_steps: Positive | None = None
    checkpoint_every_seconds: float | None = Field(default=300.0, gt=0)
    keep_checkpoints: Positive = Field(default=2, description="newest; the best is kept besides")

    workers: int | tuple[int, int] = Field(
        default=0, description="0: this process; N: Ray Train; (min, max): elastic"
    )
    parallel: Literal["replicate", "fsdp"] = Field(
        default="replicate",
        description="replicate: each worker holds the whole model; fsdp: a slice of it (FSDP2)",
    )
    threads_per_worker: Positive = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    prefetch: int = Field(default=1, ge=0, description="batches read ahead by a thread")
    max_failures: int = Field(default=3, ge=0, description="worker deaths a Ray run survives")

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        low, high = (
            self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)
        )
        if low < 0 or high < low or (isinstance(self.workers, tuple) and low < 1):
            raise ValueError(f"workers={self.workers}: give 0, N >= 1 or (min, max) with min >= 1")
        if self.optimizer == "adamw" and self.momentum:
            raise ValueError("momentum belongs to optimizer=sgd; adamw has betas")
        fields = type(self).model_fields
        adaptive = [n for n in ("betas", "eps") if getattr(self, n) != fields[n].default]
        if self.optimizer == "sgd" and adaptive:
            raise ValueError(
                f"{' and '.join(adaptive)} belong to optimizer=adamw; sgd has momentum"
            )
        return self

    @model_serializer(mode="wrap")
    def _serialise(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if info.context and info.context.get("identity"):
            return {name: value for name, value in fields.items() if name not in self.EXECUTION}
        return fields

    def total_steps(self, steps_per_epoch: int) -> int:
        """T, updates of a whole run."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)
