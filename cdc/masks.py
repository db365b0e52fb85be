"""Masked columns: they leave the source as HMAC-SHA256 (RFC 2104) of their text, under a key that it never stores.

The reading session sets the key's two pads, by which the view that such a table's rows are read from hashes, or where
there is none, since tables are polled, the statement that reads them.
"""

import hashlib
from collections.abc import Iterable

from cdc.wire import TableName
from runtime.errors import ConfigurationError

_BLOCK_BYTES = 64


def mask_session(key: str | None) -> dict[str, str]:
    """Return the session's settings for a key, none without one: the two pads of RFC 2104, in hex."""
    if key is None:
        return {}
    secret = key.encode()
    block = (hashlib.sha256(secret).digest() if len(secret) > _BLOCK_BYTES else secret).ljust(_BLOCK_BYTES, b"\0")
    return {
        "viewkeeper.mask_inner": bytes(byte ^ 0x36 for byte in block).hex(),
        "viewkeeper.mask_outer": bytes(byte ^ 0x5C for byte in block).hex(),
    }


def demand_key(masked: Iterable[TableName], key: str | None) -> None:
    """Raise ConfigurationError if there are tables with masks and no key."""
    names = ", ".join(map(str, masked))
    if names and key is None:
        raise ConfigurationError(
            f"VIEWKEEPER_CDC_MASK_KEY is not set, and {names} has masked columns: set it, best by "
            "VIEWKEEPER_CDC_MASK_KEY_FILE, to a secret of 16 characters or more, the same one each time"
        )
