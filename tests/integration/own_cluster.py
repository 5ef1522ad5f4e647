"""A Ray cluster of its own for a test: token authentication, loopback, free ports, own folder."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml

BIN = Path(sys.executable).parent
RAYSYS = [sys.executable, "-c", "from raysys.cli.main import run; run()"]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Cluster:
    """A running head node; `env` is what its clients need."""

    dashboard: str
    folder: Path
    env: dict[str, str]

    def run(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a raysys verb as a client of the cluster."""
        command = [*RAYSYS, *arguments]
        with subprocess.Popen(
            command, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as client:
            try:
                output, errors = client.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                client.kill()
                errors = client.communicate()[1]
                raise AssertionError(f"no end after {timeout:g} s: {errors[-4000:]}") from None
        return subprocess.CompletedProcess(command, client.returncode, output, errors)

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes of this cluster whose title contains `name`."""
        found = []
        for process in psutil.process_iter():
            try:
                titled = name in " ".join(process.cmdline())
                if titled and self._owns(process):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def _owns(self, process: psutil.Process) -> bool:
        mine = [process, *process.parents()]
        return any(str(self.folder) in " ".join(parent.cmdline()) for parent in mine)


@contextmanager
def ray_cluster(cpus: int = 2) -> Iterator[Cluster]:
    """Start a head node; end exactly its processes when done."""
    # Not tmp_path: socket paths below it would be longer than the 107 bytes they may have.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    dashboard = free_port()
    gcs = free_port()
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={gcs}"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-port={dashboard}", f"--temp-dir={folder}", f"--num-cpus={cpus}"]
    for name in ("dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export"):
        command.append(f"--{name}-port={free_port()}")
    command += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000"]
    with (folder / "start.log").open("w") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    cluster = Cluster(
        dashboard=f"http://127.0.0.1:{dashboard}",
        folder=folder,
        env={
            **env,
            "RAY_ADDRESS": f"127.0.0.1:{gcs}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        },
    )
    try:
        _wait(cluster, head, token.read_text())
        yield cluster
    finally:
        _end(cluster, head)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def served(cluster: Cluster, folder: Path, config: dict[str, Any]) -> Iterator[str]:
    """`raysys serve` in a process of its own, ended by SIGTERM."""
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({**config, "http": {"port": free_port()} | config["http"]}))
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [*RAYSYS, "serve", str(path), "--json"],
            env=cluster.env,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "serve.log").read_text()[-3000:]
        yield json.loads(line)["url"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (folder / "serve.log").read_text()[-3000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait(cluster: Cluster, head: subprocess.Popen[bytes], token: str) -> None:
    end = time.monotonic() + 120
    headers = {"Authorization": f"Bearer {token}"}
    while time.monotonic() < end and head.poll() is None:
        try:
            url = f"{cluster.dashboard}/api/jobs/"
            if requests.get(url, headers=headers, timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise RuntimeError((cluster.folder / "start.log").read_text()[-2000:])


def _end(cluster: Cluster, head: subprocess.Popen[bytes]) -> None:
    mine = {p.pid: p for p in cluster.processes("")}
    if head.poll() is None:
        for child in psutil.Process(head.pid).children(recursive=True):
            mine[child.pid] = child
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(10)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
    for process in mine.values():
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(list(mine.values()), timeout=10)
