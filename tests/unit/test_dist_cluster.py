"""The token file that `ensure_ray` leaves for Ray, without starting Ray."""

from pathlib import Path

import pytest

from raysys.dist.cluster import _has_token, _write_token


def test_token_is_made_once_and_readable_by_its_owner_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "ray" / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert not _has_token()
    _write_token()
    assert _has_token()
    assert token.stat().st_mode & 0o777 == 0o600
    first = token.read_text()
    assert len(first) == 64
    _write_token()
    assert token.read_text() == first
    assert [path.name for path in token.parent.iterdir()] == ["token"]


def test_a_token_in_the_environment_needs_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    _write_token()
    assert list(tmp_path.iterdir()) == []
