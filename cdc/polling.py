"""What the timestamp source knows of one table that it polls, and how a position in it is written."""

from datetime import datetime

import msgspec
import structlog

from cdc import timestamp_sql
from cdc.look_back import LookBack, Order
from cdc.table_options import Mode
from cdc.tables import Kind
from cdc.timestamp_limits import limits
from cdc.timestamp_tables import PolledTable
from runtime.settings import CdcSettings

log = structlog.get_logger()


class Position(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a table has been read: behind the row that has `after` in the columns `by`, None before all rows.

    `by` names them with their types, whose texts the values are.

    `swept_at` is when the newest sweep was begun, or the reading of all rows that ends with one, by the source's clock;
    all transactions before `swept_xmin` had ended then. `keys_request` is the newest request for keys whose rows have
    been read. `looked_at` was the newest timestamp when the newest look back that is over was begun; all transactions
    before `looked_xmin` had ended then.
    """

    by: tuple[str, ...]
    after: Order | None
    swept_at: datetime | None = None
    swept_xmin: str | None = None
    keys_request: int = 0
    looked_at: str | None = None
    looked_xmin: str | None = None

    @property
    def newest(self) -> str | None:
        """The timestamp that the next look back is counted from, None if that is all rows."""
        return self.looked_at or (self.after[0] if self.after else None)

    def is_due(self, time: datetime, seconds: float) -> bool:
        """Return whether at a time of the source's clock the newest sweep is so many seconds old, or not known."""
        # A clock that was set back would have the next one wait for long.
        return self.swept_at is None or not 0 <= (time - self.swept_at).total_seconds() < seconds

    def text(self) -> str:
        """Return the position as the cursor has it."""
        return msgspec.json.encode(self).decode()


class Intervals(msgspec.Struct, frozen=True, kw_only=True):
    """How far a source looks back, how often it sweeps (seconds, 0 is never), and how often it reads mode bulk."""

    look_back_seconds: float
    sweep_seconds: float
    bulk_seconds: float

    @classmethod
    def of(cls, settings: CdcSettings) -> "Intervals":
        """Return those that are set."""
        return cls(
            look_back_seconds=settings.cdc_look_back_seconds,
            sweep_seconds=settings.cdc_sweep_seconds,
            bulk_seconds=settings.cdc_bulk_seconds,
        )


NOTHING = Intervals(look_back_seconds=0, sweep_seconds=0, bulk_seconds=1)
"""For a source that only reads rows again."""


class Polling:
    """What a session knows of one table."""

    def __init__(self, polled: PolledTable, intervals: Intervals) -> None:
        self.polled = polled
        self.by = ("bulk",) if polled.mode is Mode.BULK else timestamp_sql.order_types(polled)
        self.look_back = LookBack(
            intervals.look_back_seconds if polled.timestamp else 0, bounded=polled.table.kind is not Kind.VIEW
        )
        self._is_told = False

    def tell(self) -> None:
        """Say once what is not seen of the table."""
        if not self._is_told:
            log.warning(
                "not_seen", table=str(self.polled.table.name), mode=self.polled.mode, limits=limits(self.polled)
            )
        self._is_told = True

    def position(self, text: str | None) -> Position | None:
        """Read a position, None if it is one in another order."""
        try:
            position = msgspec.json.decode(text or "", type=Position)
        except msgspec.DecodeError:
            return None
        return position if position.by == self.by else None
