"""vLLM through Ray Data: one job over rows of token ids, its answers in the order of the rows."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import torch

from raysys.data.prepared import cache_root
from raysys.dist import ensure_ray
from raysys.errors import RaysysError
from raysys.llm.encoder import Dtype, compute_dtype
from raysys.llm.engine.choice import Resources, Task

# Rows of a block, the unit that an engine takes, and blocks that it works on at once: enough that
# the engine never waits for rows, few enough that little is lost with it.
ROWS_PER_BLOCK = 256
_BLOCKS_AT_ONCE = 4
# CPUs asked for by what feeds the engine: all of it must find a place on one core.
_LITTLE = 0.1
ERROR = "__inference_error__"

Row = dict[str, Any]


def vllm_rows(
    table: pa.Table,
    tokenise: Callable[[], Callable[[pa.Table], pa.Table]],
    request: Callable[[Row], Row],
    answer: Callable[[Row], Row],
    *,
    task: Task,
    model: str,
    dtype: Dtype,
    engine_kwargs: Mapping[str, Any],
    resources: Resources,
) -> Iterator[list[Row]]:
    """The answers to the rows of `table`, in their order, some at a time.

    Args:
        table: rows; carried along.
        tokenise: makes, in a worker, the function that adds columns to a block of rows.
        request: what a row with those columns asks of vLLM (`tokenized_prompt`, parameters).
        answer: what is kept of a row that vLLM has answered. A row that it refused has its
            reason in `ERROR`, beside the columns it came with.
        task, model, dtype, engine_kwargs: of the engine.

    Raises:
        RaysysError: the engine does not start, or died more often than `resources` allow.
    """
    ensure_ray(worker_logs=False)
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    # Ray and vLLM say much that is of no use here; failures come back as exceptions.
    for name in ("ray.data", "ray.llm", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    gpu = torch.cuda.is_available()
    config = vLLMEngineProcessorConfig(
        model_source=model,
        task_type=task,
        batch_size=ROWS_PER_BLOCK,
        max_concurrent_batches=_BLOCKS_AT_ONCE,
        concurrency=(resources.engines, resources.engines),
        engine_kwargs={
            "dtype": str(compute_dtype(dtype, torch.device("cuda" if gpu else "cpu"))).removeprefix(
                "torch."
            ),
            "disable_log_stats": True,
            "enforce_eager": not gpu,
            **engine_kwargs,
        },
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
        placement_group_config={"bundles": [{"GPU": 1, "CPU": 0.5} if gpu else {"CPU": 0.5}]},
        should_continue_on_error=True,
        runtime_env={"env_vars": _environment(resources, gpu)},
    )
    processor = build_processor(
        config,
        preprocess=request,
        postprocess=answer,
        preprocess_map_kwargs={"num_cpus": _LITTLE},
        postprocess_map_kwargs={"num_cpus": _LITTLE},
    )
    # Ray restarts a dead engine's actor for ever, also when a row of the job is what kills it.
    stage = processor.get_stage_by_name("vLLMEngineStage")
    stage.map_batches_kwargs["max_restarts"] = resources.restarts
    stage.map_batches_kwargs["max_task_retries"] = resources.restarts
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    blocks = [table.slice(i, ROWS_PER_BLOCK) for i in range(0, len(table), ROWS_PER_BLOCK)]
    with ray.data.DataContext.current(context):
        rows = ray.data.from_arrow(blocks).map_batches(
            _Stage,
            fn_constructor_args=(tokenise,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=_LITTLE,
        )
        try:
            for block in processor(rows).iter_batches(batch_size=None, batch_format="pyarrow"):
                yield block.to_pylist()
        except Exception as error:
            raise RaysysError(
                f"engine vllm failed: {_reason(error)}. What was committed is kept: run the same "
                "command again, or with --engine transformers"
            ) from error


class _Stage:
    """A function of blocks that a worker makes once."""

    def __init__(self, make: Callable[[], Callable[[pa.Table], pa.Table]]) -> None:
        self._call = make()

    def __call__(self, block: pa.Table) -> pa.Table:
        return self._call(block)


def _environment(resources: Resources, gpu: bool) -> dict[str, str]:
    """What an engine process must find in its environment."""
    names = {
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",  # the model is a local folder
        "RAYSYS_CACHE": str(cache_root()),
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if not gpu:
        threads = resources.threads or os.cpu_count() or 1
        names |= {
            "OMP_NUM_THREADS": str(threads),
            # Its worker in the engine's own process: one process less to start, nothing to hand
            # over at every step. Ray's asynchronous engine itself heeds this in nothing else.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # Left to itself vLLM pins its threads to one logical core of each physical one.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(resources.kv_cache_gib),
        }
    return names


def _reason(error: BaseException) -> str:
    """The last line of the innermost cause that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:400] if lines else type(error).__name__
