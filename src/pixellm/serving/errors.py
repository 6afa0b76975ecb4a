"""What a server refuses, as OpenAI's clients read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RefusedError(Exception):
    """A request that gets no answer.

    Attributes:
        message: one sentence for a person; names no file and no address of this machine.
        code: a short name for programs.
    """

    def __init__(
        self, status: int, message: str, code: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = kinds.get(self.status, usual)
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}


def invalid(message: str, code: str = "invalid_request") -> RefusedError:
    """A request that can't be answered as it stands."""
    return RefusedError(400, message, code)
