"""The JSON that `viewkeeper-cdc attach`, `detach` and `snapshot` print: names are kept, and new ones may come."""

import msgspec


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A table that was named, and whether it was attached before the command.

    `moving_to` is the source that the capture takes it over for when it is started with that one, null mostly.
    """

    table: str
    was_attached: bool
    moving_to: str | None = None


class Attachments(msgspec.Struct, frozen=True, kw_only=True):
    """What `attach` or `detach` found, in the order in which the tables were named."""

    capture: str
    tables: tuple[Attachment, ...]


class RequestedSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it stands in the source."""

    id: int
    table: str


class RequestedSnapshots(msgspec.Struct, frozen=True, kw_only=True):
    """What `snapshot` asked for; `complete` if it was waited for until all topics equalled their tables."""

    capture: str
    requests: tuple[RequestedSnapshot, ...]
    complete: bool
