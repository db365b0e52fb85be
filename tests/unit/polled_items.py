"""A table that is polled, as unit tests have it, without a database."""

from cdc.table_options import Level, Mode
from cdc.tables import CapturedTable, Column, Kind
from cdc.timestamp_tables import PolledTable
from cdc.wire import TableName

ID = Column("id", "bigint", "bigint")
POLLED = PolledTable(
    table=CapturedTable(
        attachment=1,
        oid=1,
        rows_oid=1,
        is_masked=False,
        name=TableName("public", "items"),
        kind=Kind.TABLE,
        level=Level.STATEMENT,
        key=(ID,),
        columns=(ID,),
    ),
    mode=Mode.INCREMENTING,
    timestamp=(),
    incrementing=ID,
)
