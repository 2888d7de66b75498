"""What the HTTP interface answers when it cannot do what was asked, in OpenAI's shape. Pure: data only."""

from __future__ import annotations

import math
from typing import NoReturn

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """An answer with an HTTP status; `param` names the field at fault, `code` says what is wrong for programs to read.

    `retry_after_s`: when to try again.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: float = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, object]:
        """The JSON that is answered."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers that go with it."""
        return {"Retry-After": str(math.ceil(self.retry_after_s))} if self.retry_after_s else {}


def refuse(param: str | None, message: str, code: str | None = "invalid_value") -> NoReturn:
    """Raise the 400 for a field that will not do."""
    raise ApiError(400, message, param=param, code=code)
