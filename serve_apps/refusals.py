"""Requests that end in an error body."""

import logging

from fastapi import Response
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_apps.schemas import ErrorBody, to_json

log = logging.getLogger("ray.serve")


class Refusal(Exception):  # noqa: N818 - an answer, not an error
    """A request that ends here with an error body."""

    def __init__(self, status: int, error: str, detail: str, request_id: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.body = ErrorBody(error=error, detail=detail, request_id=request_id)

    def response(self) -> Response:
        """Busy answers say when to come back."""
        headers = {"Retry-After": "1"} if self.status == 503 else {}
        return json_response(self.status, to_json(self.body), headers)


def unavailable(error: Exception, request_id: str | None = None) -> Refusal:
    """What a client is told when a deployment did not answer."""
    if isinstance(error, BackPressureError):
        return Refusal(503, "busy", "the model's queue is full; try again", request_id)
    if not isinstance(error, (RayActorError, DeploymentUnavailableError)):
        log.error("request %s failed", request_id, exc_info=error)
    return Refusal(503, "unavailable", "the model failed; try again", request_id)


def json_response(status: int, body: bytes, headers: dict[str, str] | None = None) -> Response:
    """An answer whose body is made already."""
    return Response(body, status, headers, media_type="application/json")
