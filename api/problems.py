"""Replies that say what is wrong: problem details, RFC 9457."""

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import quote

import msgspec
from starlette.responses import Response
from starlette.types import Scope

MEDIA_TYPE = "application/problem+json"
_URI_CHARACTERS = "/%:@!$&'()*+,;=~?"


def problem(scope: Scope, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the reply to the request `scope` with an HTTP status, a sentence about this one case, and more headers."""
    body = problem_body(status, detail, instance=quote(scope["raw_path"], safe=_URI_CHARACTERS))
    return Response(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def problem_body(status: int, detail: str, **further: str) -> bytes:
    """Return the body of such a reply, with `further` members behind the usual ones."""
    # The status says it all: no type of our own.
    members = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return msgspec.json.encode({**members, **further})
