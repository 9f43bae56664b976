"""Requests that the server refuses: each has a status, a code for programs and a message for people."""

from __future__ import annotations

from typing import Any

from retinanet.errors import RetinaNetError

# The status of each code. The OpenAPI document lists them, too.
STATUS = {
    "empty_body": 400,
    "bad_multipart": 400,
    "bad_length": 400,
    "bad_request": 400,
    "invalid_option": 400,
    "unauthorized": 401,
    "not_found": 404,
    "unknown_model": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "upload_too_slow": 408,
    "too_large": 413,
    "too_many_pixels": 413,
    "not_an_image": 415,
    "broken_image": 422,
    "overloaded": 429,
    "client_left": 499,
    "internal": 500,
    "deadline_exceeded": 503,
    "shutting_down": 503,
}


class Refusal(RetinaNetError):
    """A request that is not answered with detections.

    Attributes:
        code: a key of :data:`STATUS`.
        status: the HTTP status.
        retry_after: seconds after which the client may try again; ``None``: trying again does not help.
    """

    def __init__(self, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code, self.status, self.retry_after = code, STATUS[code], retry_after

    def content(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        return {"error": {"code": self.code, "message": str(self)}}
