"""`/live`: a page on which one watches a row change and the pipeline at work, and the figures that it draws."""

import base64
import hashlib
import re
from importlib.resources import files

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.conditional import IF_NONE_MATCH, entity_tag, header, matches
from api.problems import problem
from api.sampling import Sampler

_AFTER = re.compile(r"[0-9]{1,15}")


def live_routes(sampler: Sampler) -> list[BaseRoute]:
    """Return the routes of the page and of its figures, which `sampler` has."""
    page = (files("api") / "live.html").read_bytes()
    headers = _page_headers(page)
    tag = headers["ETag"].encode()

    async def show(request: Request) -> Response:
        known = header(request.scope["headers"], IF_NONE_MATCH)
        if known is not None and matches(known, tag):
            return Response(status_code=304, headers=headers)
        return Response(page, media_type="text/html", headers=headers)

    async def figures(request: Request) -> Response:
        after = request.query_params.get("after", "0")
        if _AFTER.fullmatch(after) is None:
            return problem(request.scope, 400, "after: it is no number of milliseconds since 1970")
        body = msgspec.json.encode(sampler.figures(after_ms=int(after)))
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})

    return [Route("/live", show), Route("/live/figures", figures)]


def _page_headers(page: bytes) -> dict[str, str]:
    """Return the headers of a page that loads nothing and runs only the style and the script that are in it."""
    policy = [
        "default-src 'none'",
        f"script-src {_hash(page, 'script')}",
        f"style-src {_hash(page, 'style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
    return {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
        "ETag": entity_tag(page).decode(),
    }


def _hash(page: bytes, element: str) -> str:
    """Return what allows the page's one inline element of this name."""
    (text,) = re.findall(rf"<{element}>(.*?)</{element}>".encode(), page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
