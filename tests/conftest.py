"""Puts this folder on the import path, so that test modules (and Ray workers) share helpers.

Skips tests, with the reason, whose marker asks for what this machine lacks.
"""

import importlib.util
import os
import shutil
import signal
from collections.abc import Callable

import pytest
from hypothesis import settings

# Tensors of tests are too small to share among threads. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs ignore Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asserts a time, and the first example of a session pays for imports.
settings.register_profile("raysys", deadline=None)
settings.load_profile("raysys")


def _no_vllm() -> str | None:
    return None if importlib.util.find_spec("vllm") else "vLLM is not installed"


def _no_browser() -> str | None:
    return None if shutil.which("chromium") else "chromium is not on the PATH"


def _no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "torch sees no CUDA device"


LACKS: dict[str, Callable[[], str | None]] = {
    "vllm": _no_vllm,
    "browser": _no_browser,
    "gpu": _no_gpu,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, lack in LACKS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (reason := lack()):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))
