"""Where a run stands: the part of a checkpoint that is not tensors."""

from pydantic import BaseModel, ConfigDict


class Best(BaseModel):
    """The best epoch so far by the early-stopping metric."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    step: int
    metrics: dict[str, float]


class TrainState(BaseModel):
    """Position in the data, decisions so far, and running sums. Mutable; saved as state.json.

    `epoch`, `epoch_step` name the next global batch; a checkpoint with `epoch_step` at the
    epoch's end still has its validation before it.
    """

    model_config = ConfigDict(extra="forbid")

    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    best: Best | None = None
    bad_epochs: int = 0
    metrics: dict[str, float] = {}
    window_loss: float = 0.0
    window_weight: float = 0.0
    epoch_loss: float = 0.0
    epoch_weight: float = 0.0
    seconds: float = 0.0
    finished: str | None = None
    log_bytes: int = 0
    world_size: int = 1
    config_hash: str | None = None
