"""Virtual environments of the peers, made on demand and kept in the cache folder."""

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from filelock import FileLock

from raysys.data.prepared import cache_root
from raysys.errors import RaysysError

FUXICTR = ("fuxictr-2.3.10", ("fuxictr==2.3.10", "torch==2.13.*"))
SENTENCE_TRANSFORMERS = (
    "sentence-transformers-6",
    ("sentence-transformers==6.*", "torch==2.13.*", "transformers>=5.19,<6"),
)
_LAST_LINES = 5


def peer_python(name: str, requirements: tuple[str, ...], *, root: Path | None = None) -> Path:
    """Python of the environment `name` holding `requirements`; made if it is missing.

    The environment lies in `root` (default: `peers` in the cache folder). It counts as made only
    when a stamp with its requirements is there, and the stamp is written last: one that was
    interrupted, or that holds other requirements, is made anew. pip takes its index and
    certificates from its own configuration.

    Raises:
        RaysysError: pip could not install the requirements, with its last lines.
    """
    folder = _folder(name, root)
    python = folder / "bin" / "python"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{name}.lock")):
        if is_made(name, requirements, root=root):
            return python
        shutil.rmtree(folder, ignore_errors=True)
        print(f"making the environment of {name} in {folder}", file=sys.stderr)
        try:
            venv.create(folder, with_pip=True)
            _pip_install(python, requirements)
            _stamp(folder).write_text(_wanted(requirements), encoding="utf-8")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return python


def is_made(name: str, requirements: tuple[str, ...], *, root: Path | None = None) -> bool:
    """Whether `peer_python` would find the environment made."""
    folder = _folder(name, root)
    stamp = _stamp(folder)
    made = stamp.is_file() and stamp.read_text(encoding="utf-8") == _wanted(requirements)
    return made and (folder / "bin" / "python").exists()


def _folder(name: str, root: Path | None) -> Path:
    return (root or cache_root() / "peers") / name


def _stamp(folder: Path) -> Path:
    return folder / "requirements.json"


def _wanted(requirements: tuple[str, ...]) -> str:
    return json.dumps([sys.version_info[:2], list(requirements)])


def _pip_install(python: Path, requirements: tuple[str, ...]) -> None:
    command = [str(python), "-m", "pip", "install", "--no-input", *requirements]
    # pip reports its progress on standard output, which belongs to the figures: send it to 2.
    done = subprocess.run(command, check=False, stdout=2, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = " | ".join(done.stderr.strip().splitlines()[-_LAST_LINES:])
        raise RaysysError(
            f"pip could not install {' '.join(requirements)}: {last}. The peer measurement needs "
            "a package index; check pip's configuration (`pip config list`) and the network"
        )
