"""What is said at the start that a polled table's mode cannot see, whole, without a database."""

from dataclasses import replace

import pytest

from cdc.table_options import Mode
from cdc.tables import Column
from cdc.timestamp_limits import limits
from tests.unit.polled_items import ID, POLLED

ZONED = Column("updated_at", "timestamp with time zone", "timestamp with time zone")
UNZONED = Column("updated_at", "timestamp without time zone", "timestamp without time zone")

ALWAYS = ("all but the last of several changes of a row", "deletes until the next sweep")
BY_TIME = (
    *ALWAYS,
    "rows that are committed later than the look-back reaches",
    "updates that leave the timestamp as it was",
    "rows whose timestamp is NULL",
)
OF_ZONED = (*BY_TIME, "rows from the future, until their time comes")
OF_UNZONED = (*BY_TIME, "changes behind a row whose timestamp is in the future")
OF_NUMBERS = (*ALWAYS, "updates", "rows that are committed after one with a larger number")


@pytest.mark.parametrize(
    ("mode", "timestamp", "words"),
    [
        (Mode.BULK, None, ("everything until the next reading of all rows",)),
        (Mode.INCREMENTING, None, OF_NUMBERS),
        (Mode.TIMESTAMP, ZONED, OF_ZONED),
        (Mode.TIMESTAMP, UNZONED, OF_UNZONED),
        (Mode.TIMESTAMP_INCREMENTING, ZONED, OF_ZONED),
        (Mode.TIMESTAMP_INCREMENTING, UNZONED, OF_UNZONED),
    ],
)
def test_each_mode_says_all_that_it_does_not_see(mode: Mode, timestamp: Column | None, words: tuple[str, ...]) -> None:
    polled = replace(
        POLLED,
        mode=mode,
        timestamp=(timestamp,) if timestamp else (),
        incrementing=ID if "incrementing" in mode else None,
    )
    assert limits(polled) == words
