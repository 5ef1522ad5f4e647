"""The resource plan: what a trial takes, what the cluster has, how many trials run at once."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from raysys.errors import ConfigError
from raysys.training import TrainConfig

Resources = dict[str, float]  # CPU, GPU, memory (bytes), …
GB = 1e9


class Plan(BaseModel):
    """process: what one training process takes; workers: processes of a trial on Ray Train, 0
    for a trial in one process of its own; at_once: trials that run side by side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int
    workers: int
    process: Resources
    cluster: Resources
    at_once: int

    def line(self) -> str:
        """The plan in one line."""
        many = "s" if self.workers > 1 else ""
        where = f"on {self.workers} Ray Train worker{many}" if self.workers else "in a process"
        return (
            f"{self.trials} trials {where} of {words(self.process)} each, {self.at_once} at once; "
            f"the cluster has {words(self.cluster)}"
        )


def make_plan(
    nodes: Sequence[Resources],
    settings: TrainConfig,
    *,
    trials: int,
    memory_gb: float,
    max_concurrent: int | None,
) -> Plan:
    """Fit as many trials as the nodes hold, at most `max_concurrent`.

    Args:
        nodes: the resources of every node that is alive.
        settings: of the recipe: workers, threads and device.
        trials: how many there are to train.
        memory_gb: of one training process.

    Raises:
        ConfigError: not even one trial fits; says what is asked for and what there is.
    """
    workers = settings.workers if isinstance(settings.workers, int) else settings.workers[1]
    gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    on_gpu = settings.device == "cuda" or (settings.device == "auto" and gpus)
    process = {"CPU": float(settings.threads_per_worker), "memory": memory_gb * GB}
    if on_gpu:
        process["GPU"] = 1.0
    slots = sum(int(min(node.get(k, 0) // v for k, v in process.items())) for node in nodes)
    fitting = slots // max(workers, 1)
    cluster = {key: sum(node.get(key, 0) for node in nodes) for key in ("CPU", "GPU", "memory")}
    if fitting == 0:
        asked = f"{workers} workers of {words(process)} each" if workers else words(process)
        roomiest = max(nodes, key=lambda node: node.get("CPU", 0), default={})
        raise ConfigError(
            f"no trial fits: it needs {asked}, the cluster has {words(cluster)} on {len(nodes)} "
            f"nodes, the largest {words(roomiest)}. Lower train.threads_per_worker, "
            "train.workers or --memory-gb, or join a larger cluster with RAY_ADDRESS"
        )
    at_once = min(fitting, trials, max_concurrent or fitting)
    return Plan(trials=trials, workers=workers, process=process, cluster=cluster, at_once=at_once)


def words(resources: Resources) -> str:
    """`2 CPUs, 1 GPU, 1.5 GB`."""
    parts = [_count(resources.get("CPU", 0), "CPU")]
    if resources.get("GPU"):
        parts.append(_count(resources["GPU"], "GPU"))
    return ", ".join([*parts, f"{resources.get('memory', 0) / GB:.1f} GB"])


def _count(number: float, name: str) -> str:
    return f"{number:g} {name}{'' if number == 1 else 's'}"


def tune_resources(plan: Plan) -> dict[str, Any]:
    """What Tune reserves for a trial; workers of a nested Ray Train reserve their own."""
    if plan.workers:
        return {"cpu": 0.01}
    return {key.lower(): value for key, value in plan.process.items()}
