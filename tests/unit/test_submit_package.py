import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import package as packaging
from cluster.jobs import check_output, job_id
from cluster.package import package
from raysys.errors import ConfigError, RaysysError


def fill(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_ignored_files_stay_behind(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            ".gitignore": "runs/\n*.log\n!keep.log\n/top.txt\n",
            ".rayignore": "big",
            ".git/HEAD": "x",
            ".venv/bin/python": "x",
            "a/__pycache__/m.pyc": "x",
            "a/.gitignore": "secret\n",
            "a/secret": "x",
            "a/top.txt": "kept: the rule is anchored at the root",
            "a/x.log": "x",
            "a/keep.log": "kept",
            "big/file": "x",
            "runs/model": "x",
            "secret": "kept: the rule holds below a/ only",
            "top.txt": "x",
        },
    )
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    found = package(tmp_path)
    assert found.files == (
        ".gitignore",
        ".rayignore",
        "a/.gitignore",
        "a/keep.log",
        "a/top.txt",
        "secret",
    )
    assert found.bytes == sum((tmp_path / name).stat().st_size for name in found.files)


def test_the_digest_is_of_names_modes_and_contents(tmp_path: Path) -> None:
    fill(tmp_path, {"a": "1", "b": "2"})
    before = package(tmp_path).digest()
    (tmp_path / "a").write_text("1")
    assert package(tmp_path).digest() == before
    digests = {before}
    for change in (
        lambda: (tmp_path / "a").chmod(0o755),
        lambda: (tmp_path / "a").write_text("3"),
        lambda: (tmp_path / "a").rename(tmp_path / "c"),
    ):
        change()
        digests.add(package(tmp_path).digest())
    assert len(digests) == 4


def test_the_archive_holds_the_files(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", {"a/b": "text", "run.sh": "#!"})
    (root / "run.sh").chmod(0o755)
    package(root).write(tmp_path / "one.zip")
    (root / "a/b").touch()
    package(root).write(tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.read("a/b") == b"text"
        assert archive.getinfo("run.sh").external_attr >> 16 == 0o755


def test_too_much_names_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaging, "MAX_BYTES", 2**20)
    fill(tmp_path, {"data/x": "x" * 2**20, "data/y": "y" * 2**20, "code.py": "z"})
    with pytest.raises(RaysysError, match=r"2.0 MiB is more than the 1.0 MiB.*data/ 2.0 MiB"):
        package(tmp_path)


def test_nothing_to_run_in(tmp_path: Path) -> None:
    with pytest.raises(RaysysError, match="no such folder"):
        package(tmp_path / "absent")
    with pytest.raises(RaysysError, match="no files"):
        package(tmp_path)


@pytest.mark.parametrize(
    "verb",
    [
        ["train", "x", "--out", "runs/a"],
        ["train", "--out=runs/a"],
        ["train", "x", "--out", "/r", "vector_table=runs/a"],
        ["embed", "--data", "/d", "--table", "runs/a"],
        ["evaluate", "runs/a", "--data", "d"],
    ],
)
def test_output_that_would_be_lost_is_refused(verb: list[str]) -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        check_output(verb)
    check_output([word.replace("runs/a", "/shared/a") for word in verb])


words = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5)


@given(words, words, st.sampled_from("ab"), st.sampled_from("ab"))
def test_ids_tell_commands_and_files_apart(
    one: list[str], two: list[str], left: str, right: str
) -> None:
    same = job_id(one, left) == job_id(two, right)
    assert same == ((one, left) == (two, right))
    assert set(job_id(one, left)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
