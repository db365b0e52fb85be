"""Whether views have topics of their own: the stable name has to be attached to a capture in the view database."""

import asyncio
import time
from contextlib import closing

from projector.definition import View
from runtime.errors import ViewkeeperError
from runtime.postgres import connect, describe, translated

ANSWER_SECONDS = 1.0
"""So long an answer, or an error, is taken for the truth: thousands of streams may begin at once."""

# By the catalog alone, so that neither a missing schema nor a missing right is an error.
_RIGHTS = """
SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
WHERE n.nspname = 'cdc' AND c.relname = 'captured_table'
"""
# Nobody waits for it for long: streams that begin do, and the end of the process.
_SESSION = {"statement_timeout": "1000", "lock_timeout": "500"}
_ATTACHED = "SELECT DISTINCT table_schema || '.' || table_name FROM cdc.captured_table"
_HIDDEN = (
    "the api's role may not see what is attached in the view database; grant it USAGE on schema cdc and SELECT on "
    "cdc.captured_table there"
)


class Attachments:
    """Knows which views are attached, as of a moment ago."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._asking = asyncio.Lock()
        self._asked_at = float("-inf")
        self._attached: frozenset[str] = frozenset()
        self._hidden: str | None = None
        self._error: ViewkeeperError | None = None

    async def complaint(self, view: View) -> str | None:
        """Return what a view's topic lacks and what is to be done about it, None if it lacks nothing.

        Raises DatabaseUnavailable, or whatever else `runtime.postgres.connect` does.
        """
        async with self._asking:
            if time.monotonic() - self._asked_at > ANSWER_SECONDS:
                self._error = None
                try:
                    self._hidden, self._attached = await asyncio.to_thread(self._ask)
                except ViewkeeperError as error:
                    self._error = error
                self._asked_at = time.monotonic()
        if self._error is not None:
            raise self._error
        if self._hidden:
            return self._hidden
        name = f"{view.schema}.{view.name}"
        if name in self._attached:
            return None
        return (
            f"{name} is attached to no capture in the view database; with VIEWKEEPER_SOURCE_URL leading to it and a "
            "VIEWKEEPER_CDC_NAME of its own run 'alembic -n source upgrade head', "
            f"'viewkeeper-cdc attach {name}' and 'viewkeeper-cdc run'"
        )

    def _ask(self) -> tuple[str | None, frozenset[str]]:
        """Return why nothing can be known of attachments, None if it can, and what is attached."""
        with (
            closing(connect(self._url, name="viewkeeper-api-attachments", settings=_SESSION)) as session,
            translated(describe(self._url)),
        ):
            rights = session.execute(_RIGHTS).fetchone()
            if rights is None:
                return None, frozenset()
            if not rights[0]:
                return _HIDDEN, frozenset()
            return None, frozenset(name for (name,) in session.execute(_ATTACHED))
