"""Jobs on a real cluster with token authentication."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from own_cluster import RAYSYS, Cluster, ray_cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster(cpus=2) as started:
        yield started


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "note.txt").write_text(tmp_path.name)
    return tmp_path / "work"


def submit(cluster: Cluster, work: Path, *verb: str, **change: str) -> tuple[int, dict, str]:
    options = ["--address", cluster.dashboard, "--working-dir", str(work), "--json"]
    done = Cluster(cluster.dashboard, cluster.folder, {**cluster.env, **change}).run(
        "submit", *options, "--", *verb
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def jobs(cluster: Cluster) -> list[str]:
    token = Path(cluster.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    headers = {"Authorization": f"Bearer {token}"}
    found = requests.get(f"{cluster.dashboard}/api/jobs/", headers=headers, timeout=30).json()
    return [job["submission_id"] for job in found if job["submission_id"]]


def test_the_same_command_attaches(cluster: Cluster, work: Path) -> None:
    before = len(jobs(cluster))
    first = submit(cluster, work, "--help")
    assert first[0] == 0, first
    second = submit(cluster, work, "--help")
    assert second[0] == 0, second
    assert not first[1]["attached"]
    assert second[1]["attached"]
    assert first[1]["submission_id"] == second[1]["submission_id"]
    # Attaching to a finished job shows its log again.
    assert "Usage" in first[2]
    assert "Usage" in second[2]
    assert len(jobs(cluster)) == before + 1
    (work / "note.txt").write_text("other content")
    third = submit(cluster, work, "--help")
    assert not third[1]["attached"]
    assert len(jobs(cluster)) == before + 2


def test_a_training_job_runs_once(cluster: Cluster, work: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "W", tmp_path / "R"
    made = cluster.run("data", "make", "world", "--users", "60", "--days", "12", "--out", str(data))
    assert made.returncode == 0, made.stderr
    verb = ["train", "ctr/din", "--data", str(data), "--out", str(run)]
    verb += ["train.workers=1", "train.epochs=1", "batch_size=16"]
    code, first, log = submit(cluster, work, *verb)
    assert code == 0, log
    assert "run folder:" in log
    weights = (run / "model.safetensors").read_bytes()
    code, second, _ = submit(cluster, work, *verb)
    assert code == 0
    assert second == {**first, "attached": True}
    assert (run / "model.safetensors").read_bytes() == weights
    # Outside a job the token is found without RAY_AUTH_MODE.
    env = {key: value for key, value in cluster.env.items() if key != "RAY_AUTH_MODE"}
    verb[verb.index(str(run))] = str(tmp_path / "R2")
    again = Cluster(cluster.dashboard, cluster.folder, env).run(*verb)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "R2" / "model.safetensors").read_bytes() == weights


def test_two_at_once_run_one_job(cluster: Cluster, work: Path) -> None:
    command = ["submit", "--json", "--working-dir", str(work), "--", "--help"]
    before = len(jobs(cluster))
    both = [
        subprocess.Popen(
            [*RAYSYS, *command], env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    answers = [json.loads(process.communicate(timeout=180)[0]) for process in both]
    assert sorted(answer["attached"] for answer in answers) == [False, True]
    assert len({answer["submission_id"] for answer in answers}) == 1
    assert len(jobs(cluster)) == before + 1


def test_a_failure_keeps_its_exit_code_and_may_be_tried_again(cluster: Cluster, work: Path) -> None:
    first = submit(cluster, work, "evaluate", "/R", "--data", "/no/such/folder")
    assert first[0] == 2
    assert "/no/such/folder" in first[2]
    assert first[1]["status"] == "FAILED"
    second = submit(cluster, work, "evaluate", "/R", "--data", "/no/such/folder")
    assert second[0] == 2
    assert not second[1]["attached"]
    assert second[1]["submission_id"] == first[1]["submission_id"] + "-2"


def test_a_wrong_token_is_one_line(cluster: Cluster, work: Path) -> None:
    code, _, error = submit(cluster, work, "--help", RAY_AUTH_TOKEN="0" * 64)
    assert code == 2
    assert "refuses the token" in error
    assert "Traceback" not in error


def test_no_cluster_is_one_line(cluster: Cluster, work: Path) -> None:
    stranger = Cluster("http://127.0.0.1:9", cluster.folder, cluster.env)
    code, _, error = submit(stranger, work, "--help")
    assert code == 2
    assert "no Ray dashboard answers" in error
    assert "Traceback" not in error


def test_doctor_looks_at_the_cluster(cluster: Cluster) -> None:
    done = cluster.run("doctor", "--address", cluster.dashboard, "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for name in ("cluster", "cluster token", "nodes", "token", "command"):
        assert checks[name]["status"] == "ok", checks[name]
    assert "1 alive" in checks["nodes"]["detail"]


def test_leaving_a_job_does_not_end_it(cluster: Cluster, work: Path, tmp_path: Path) -> None:
    options = ["--working-dir", str(work), "--json"]
    # Long enough to be left while it runs.
    verb = ["data", "make", "world", "--users", "2000", "--days", "40"]
    verb += ["--out", str(tmp_path / "W")]
    # Asked at once, before any cluster could have started it: this leaves the job in the queue.
    queued = cluster.run("submit", *options, "--pending-timeout", "0", "--", *verb)
    assert queued.returncode == 2, queued.stderr
    assert "still PENDING after 0 s" in " ".join(queued.stderr.split())
    command = [*RAYSYS, "submit", *options, "--", *verb]
    leaver = subprocess.Popen(
        command, env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert leaver.stderr is not None
    assert "attached to data-" in leaver.stderr.readline()
    leaver.send_signal(signal.SIGINT)
    error = leaver.communicate(timeout=60)[1]
    assert "goes on without us" in error
    assert leaver.returncode == 130
    stayer = cluster.run("submit", *options, "--", *verb)
    result = json.loads(stayer.stdout)
    assert result["attached"]
    assert result["status"] == "SUCCEEDED", stayer.stderr
    assert (tmp_path / "W" / "manifest.json").is_file()
    again = cluster.run("submit", *options, "--again", "--no-wait", "--", *verb)
    assert json.loads(again.stdout)["submission_id"] == result["submission_id"] + "-2"
