"""Checksums of big files, each read once."""

import hashlib
from pathlib import Path

from raysys.data.files import sha256_file, write_text
from raysys.data.prepared import cache_root


def cached_sha256(file: Path) -> str:
    """sha256 of a file, remembered in the cache folder by path, size and time of change."""
    status = file.stat()
    name = f"{file.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    note = cache_root() / "sha256" / hashlib.sha256(name.encode()).hexdigest()
    if note.is_file():
        stored = note.read_text(encoding="ascii").strip()
        if len(stored) == 64:
            return stored
    digest = sha256_file(file)
    note.parent.mkdir(parents=True, exist_ok=True)
    write_text(note, digest + "\n")
    return digest
