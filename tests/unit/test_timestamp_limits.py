"""What is said at the start that a polled table's mode cannot see, whole, without a database."""

import pytest

from cdc.table_options import Level, Mode
from cdc.tables import CapturedTable, Column, Kind
from cdc.timestamp_limits import limits
from cdc.timestamp_tables import PolledTable
from cdc.wire import TableName

ID = Column("id", "bigint", "bigint")
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
    table = CapturedTable(
        attachment=1,
        oid=1,
        rows_oid=1,
        is_masked=False,
        name=TableName("public", "items"),
        kind=Kind.TABLE,
        level=Level.STATEMENT,
        key=(ID,),
        columns=(ID,),
    )
    polled = PolledTable(
        table,
        mode,
        timestamp=(timestamp,) if timestamp else (),
        incrementing=ID if "incrementing" in mode else None,
    )
    assert limits(polled) == words
