"""The working directory of a job: which files go along, how large they are, what they hold."""

import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from raysys.errors import RaysysError

MAX_BYTES = 100 * 2**20
_NEVER = frozenset({".git", ".venv", "__pycache__"})
_IGNORE_FILES = (".gitignore", ".rayignore")
# Zip files hold the time of every member; a constant one keeps equal contents equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """Files of `root` that a job gets: relative paths in order, and their total size."""

    root: Path
    files: tuple[str, ...]
    bytes: int

    def digest(self) -> str:
        """Hex sha256 over names, executable bits and contents."""
        total = hashlib.sha256()
        for name in self.files:
            path = self.root / name
            with path.open("rb") as handle:
                content = hashlib.file_digest(handle, "sha256").hexdigest()
            total.update(f"{name}\0{os.access(path, os.X_OK)}\0{content}\n".encode())
        return total.hexdigest()

    def write(self, target: Path) -> None:
        """Zip the files into `target`."""
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name in self.files:
                path = self.root / name
                member = zipfile.ZipInfo(name, _EPOCH)
                member.compress_type = zipfile.ZIP_DEFLATED
                member.external_attr = (0o755 if os.access(path, os.X_OK) else 0o644) << 16
                archive.writestr(member, path.read_bytes())


def package(root: Path) -> Package:
    """Collect the files of `root`, leaving out what .gitignore and .rayignore name.

    Folders behind symbolic links are not followed.

    Raises:
        RaysysError: no such folder, nothing in it, or more than 100 MiB; names the largest parts.
    """
    if not root.is_dir():
        raise RaysysError(f"--working-dir {root}: no such folder")
    sizes = dict(sorted(_walk(root, "", ())))
    total = sum(sizes.values())
    if not sizes:
        raise RaysysError(f"--working-dir {root}: no files are left after .gitignore, .rayignore")
    if total > MAX_BYTES:
        raise RaysysError(
            f"--working-dir {root}: {_mib(total)} is more than the {_mib(MAX_BYTES)} that Ray "
            f"uploads; list what the job does not need in .rayignore. Largest: {_largest(sizes)}"
        )
    return Package(root, tuple(sizes), total)


def _walk(
    root: Path, below: str, specs: tuple[tuple[str, GitIgnoreSpec], ...]
) -> Iterator[tuple[str, int]]:
    folder = root / below
    for name in _IGNORE_FILES:
        file = folder / name
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            specs = (*specs, (below, GitIgnoreSpec.from_lines(lines)))
    for entry in os.scandir(folder):
        path = f"{below}{entry.name}"
        is_folder = entry.is_dir(follow_symlinks=False)
        seen = f"{path}/" if is_folder else path
        if entry.name in _NEVER or any(
            spec.match_file(seen.removeprefix(base)) for base, spec in specs
        ):
            continue
        if is_folder:
            yield from _walk(root, seen, specs)
        elif entry.is_file():
            yield path, entry.stat().st_size


def _largest(sizes: dict[str, int]) -> str:
    parts: Counter[str] = Counter()
    for name, size in sizes.items():
        head, slash, _ = name.partition("/")
        parts[head + slash] += size
    return ", ".join(f"{name} {_mib(size)}" for name, size in parts.most_common(3))


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
