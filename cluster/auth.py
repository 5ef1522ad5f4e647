"""The token of a Ray cluster, read the way Ray reads it."""

import os
from pathlib import Path

from raysys.errors import RaysysError


def token_file() -> Path:
    """Where Ray looks for the token unless RAY_AUTH_TOKEN holds it."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def headers() -> dict[str, str]:
    """HTTP headers that authenticate against a dashboard; none without a token.

    Ray's own client adds them only if RAY_AUTH_MODE was set before ray was first imported.

    Raises:
        RaysysError: the token file cannot be read.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN")
    path = token_file()
    if not token and path.is_file():
        try:
            token = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise RaysysError(f"{path}: cannot read the Ray token ({error.strerror})") from error
    return {"Authorization": f"Bearer {token}"} if token else {}
