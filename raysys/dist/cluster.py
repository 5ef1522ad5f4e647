"""Connecting to Ray: the cluster that RAY_ADDRESS names, or one on this machine."""

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysys.errors import RaysysError


_PASSED_ON = ("GLOO_", "NCCL_", "TORCH_", "RAYSYS_", "HF_HUB_OFFLINE")


def ensure_ray(
    num_cpus: int | None = None,
    env: Mapping[str, str] | None = None,
    *,
    worker_logs: bool = True,
) -> bool:
    """Connect to Ray unless connected; True if a cluster was started on this machine.

    With RAY_ADDRESS set, joins that cluster, with token authentication if a token is at hand
    (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token). Otherwise starts one of its own
    with `num_cpus` CPUs (default: all). Its dashboard, which Ray itself asks whether the workers
    of a dead run may be released, listens on the loopback interface only; Ray's internal ports
    listen on all, guarded by token authentication unless RAY_AUTH_MODE says otherwise. Its
    workers run at the priority of ordinary processes unless RAY_worker_niceness says otherwise.
    `env` is what all workers of this process find in their environment; without `worker_logs`
    what they print stays in Ray's log files.

    Raises:
        RaysysError: the cluster cannot be reached.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address and os.environ.get("RAY_AUTH_MODE", "token") == "token":
        _write_token()
    # Ray reads the mode when it is first imported and never again.
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"
    if not address:
        # Ray starts workers at niceness 15: any other process then takes their cores away.
        os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    if ray.is_initialized():
        return False
    more: dict[str, Any] = {"log_to_driver": worker_logs}
    if env:
        more["runtime_env"] = {"env_vars": dict(env)}
    if not address:
        # "local", because by default Ray joins whatever `ray start` left running on this machine.
        with _announced(ray.util.get_node_ip_address()):
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                logging_level=logging.WARNING,
                **more,
            )
        return True
    try:
        ray.init(address=address, logging_level=logging.WARNING, **more)
    except Exception as error:
        raise RaysysError(
            f"cannot join the Ray cluster RAY_ADDRESS={address}: {error}. Is it running, and is "
            "its token in RAY_AUTH_TOKEN or ~/.ray/auth_token (with RAY_AUTH_MODE=token)?"
        ) from error
    return False


@contextmanager
def _announced(host: str) -> Iterator[None]:
    """A cluster started here tells its workers its own address. Ray's helper actors would else
    look for "the" cluster of the machine, fail where there are several, and never release the
    CPUs of a training that was stopped."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    os.environ |= {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"{host}:{port}"}
    try:
        yield
    finally:
        del os.environ["RAY_GCS_SERVER_PORT"], os.environ["RAY_ADDRESS"]


def worker_env(threads: int) -> dict[str, str]:
    """The environment of a worker that trains with so many threads: what is ours or the user's
    for the libraries below, and settings that must be there before torch is loaded."""
    passed = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    # Ray runs the loop in a thread, and what is freed in the malloc arena of a thread goes back to
    # the kernel after every step whatever `keep_freed_memory` says. One arena serves all threads.
    arenas = os.environ.get("MALLOC_ARENA_MAX", "1")
    return {**passed, "OMP_NUM_THREADS": str(threads), "MALLOC_ARENA_MAX": arenas}


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))


def _has_token() -> bool:
    return "RAY_AUTH_TOKEN" in os.environ or _token_file().is_file()


def _write_token() -> None:
    """Make a token that only its owner can read; the one Ray would write is open to everyone."""
    if _has_token():
        return
    path = _token_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(secrets.token_hex(32))
    os.rename(scratch, path)
