"""Runs of a bench in processes of their own, each of which prints its figures as one JSON line."""

import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

from raysys.errors import RaysysError


def figures_of(command: Sequence[str], threads: int, label: str) -> dict[str, Any]:
    """The last line that `command` prints, which is JSON.

    Raises:
        RaysysError: it failed; with `label` and its last lines.
    """
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    env["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        last = " | ".join(done.stderr.strip().splitlines()[-5:])
        raise RaysysError(f"a run of the bench failed ({label}): {last}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
