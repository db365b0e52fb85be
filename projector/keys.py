"""Keys of views as people write them, in a command for instance: the columns of several are separated by slashes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import quote, unquote

from psycopg import errors as pg

from projector.changes import Key
from projector.definition import View
from projector.errors import DefinitionError


def parse_key(view: View, text: str) -> tuple[str, ...]:
    """Return the texts of a key's columns. Where there are several, each is decoded from percent-encoding.

    Raises DefinitionError where there are not as many as the view's key has. That each is of its type, Postgres finds.
    """
    if len(view.key_names) == 1:
        return (text,)
    parts = text.split("/")
    if len(parts) != len(view.key_names):
        raise _no_key(view, text)
    return tuple(map(unquote, parts))


def key_text(key: Key) -> str:
    """Return a key as `parse_key` reads it."""
    return "/".join(quote(str(part), safe="") for part in key) if isinstance(key, tuple) else str(key)


def keys_by_column(view: View, keys: Iterable[Key]) -> list[list[object]]:
    """Return the values of each of the key's columns, of all keys."""
    texts = [key if isinstance(key, tuple) else (key,) for key in keys]
    return [[key[place] for key in texts] for place in range(len(view.key_names))]


@contextmanager
def key_of(view: View, text: str) -> Iterator[None]:
    """Raise DefinitionError where Postgres finds that a key is none of the view's types."""
    try:
        yield
    except pg.DataError as error:
        raise _no_key(view, text) from error


def _no_key(view: View, text: str) -> DefinitionError:
    types = "/".join(column.type for column in view.key_columns)
    hint = "" if len(view.key_names) == 1 else f": write {'/'.join(view.key_names)}, percent-encoded within"
    return DefinitionError(f"{text!r} is no key of view {view.name!r}, which has {types}{hint}")
