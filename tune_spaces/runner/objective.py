"""What a trial is judged by after each epoch: the metric of the weights it would keep."""

from typing import Any, Literal

from raysys.errors import ConfigError
from raysys.training import EarlyStopping

Record = dict[str, Any]


class Objective:
    """With early stopping a run keeps the weights of its best epoch, without it the last ones;
    the value after an epoch is that of the weights kept if training ended there.

    Args:
        metric: of the validation split.
        rule: the recipe's early stopping.
    """

    def __init__(self, metric: str, rule: EarlyStopping | None) -> None:
        self._metric = metric
        self._rule = rule
        self._best: float | None = None
        self._kept: float | None = None

    def __call__(self, record: Record) -> Record:
        """The epoch as the sweep counts it. Records must come in order.

        Raises:
            ConfigError: validation does not give the metric.
        """
        if f"val/{self._metric}" not in record:
            given = [key[4:] for key in record if key.startswith("val/")]
            raise ConfigError(
                f"the sweep looks at {self._metric}, but validation gives "
                f"{', '.join(given) or 'no metrics'}"
            )
        judged = None if self._rule is None else record[f"val/{self._rule.metric}"]
        if judged is None or (self._rule and self._rule.improves(judged, self._best)):
            self._best, self._kept = judged, record[f"val/{self._metric}"]
        return {
            "kind": "epoch",
            "epoch": record["epoch"],
            "value": self._kept,
            "seconds": record["seconds"],
            "finished": record["finished"] is not None,
        }


def better(value: float, than: float | None, mode: Literal["max", "min"]) -> bool:
    """Whether `value` beats `than`, or there is nothing to beat."""
    return than is None or (value > than if mode == "max" else value < than)
