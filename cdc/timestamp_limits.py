"""What a mode of the timestamp source cannot see, in words. Pure."""

from cdc.table_options import Mode
from cdc.timestamp_tables import PolledTable

_OF_ALL = ("deletes until the next sweep",)
_OF_TIMESTAMPS = (
    "rows that are committed later than the look-back reaches",
    "updates that leave the timestamp as it was",
    "rows whose timestamp is NULL",
)


def limits(polled: PolledTable) -> tuple[str, ...]:
    """Say what is not seen of a table, by its mode and until it is read anew."""
    if polled.mode is Mode.BULK:
        return ("everything until the next reading of all rows",)
    lost = ("all but the last of several changes of a row", *_OF_ALL)
    if polled.mode is Mode.INCREMENTING:
        return (*lost, "updates", "rows that are committed after one with a larger number")
    if polled.has_zone:
        return (*lost, *_OF_TIMESTAMPS, "rows from the future, until their time comes")
    return (*lost, *_OF_TIMESTAMPS, "changes behind a row whose timestamp is in the future")
