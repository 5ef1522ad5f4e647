"""Writing files so that nobody ever sees a half-written one."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysys.errors import DataError, StorageFullError

# No space, no quota, or a file that may not grow any further.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fsync_tree(folder: Path) -> None:
    """Flush every file and directory below `folder` to the disk."""
    for root, _, names in os.walk(folder):
        for name in [*names, "."]:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def full_disk(message: str) -> Iterator[None]:
    """Turns the OSError of a full disk into a StorageFullError with `message`.

    Raises:
        StorageFullError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StorageFullError(message) from error


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target`, removed at the end of the block.

    Raises:
        StorageFullError: the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    message = (
        f"no space left on the disk of {target.parent}: nothing was kept; "
        "free some space or choose another --out"
    )
    try:
        with full_disk(message):
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling of `target` that takes its name when the block ends well.

    On any error the temporary folder is removed and `target` is left as it was. What is replaced
    stands aside until the new folder is there, so that a process that is killed meanwhile loses
    nothing: readers find it by `standing`, the next call puts it back.

    Raises:
        DataError: `target` exists and `overwrite` is false.
        StorageFullError: the disk is full.
    """
    target = Path(target)
    aside = _aside(target)
    if aside.exists():
        if target.exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, target)
    if target.exists() and not overwrite:
        raise DataError(f"{target} exists already; choose another --out or pass --overwrite")
    with scratch_folder(target) as scratch:
        scratch.chmod(0o755)
        yield scratch
        fsync_tree(scratch)
        if not target.exists():
            os.rename(scratch, target)
            return
        os.rename(target, aside)
        try:
            os.rename(scratch, target)
        except BaseException:
            os.rename(aside, target)
            raise
        shutil.rmtree(aside)


def standing(target: Path) -> Path:
    """`target`, or what `new_folder` was about to replace when it was killed."""
    aside = _aside(target)
    return aside if not target.exists() and aside.exists() else target


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically: temporary sibling, fsync, rename."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
