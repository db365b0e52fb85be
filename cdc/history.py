"""What another history of the source, or of Kafka, than the cursor's leads to."""

from cdc.cursor import TableCursor
from cdc.errors import CaptureError
from cdc.tables import SourceKind, source_of
from runtime.settings import CdcSettings


def demand_snapshot_allowed(settings: CdcSettings, reason: str) -> None:
    """Raise CaptureError with the `reason`, and what to do, unless another history is to be answered by snapshots."""
    if settings.cdc_on_other_history == "stop":
        raise CaptureError(
            f"{reason}. If the database was restored or promoted with loss, or Kafka was set back, run it once "
            "with VIEWKEEPER_CDC_ON_OTHER_HISTORY=snapshot, which reads every table anew; if another database is "
            f"captured under the same name, {settings.cdc_name}, give one of them another VIEWKEEPER_CDC_NAME and "
            "VIEWKEEPER_TOPIC_PREFIX"
        )


def demand_moved_together(settings: CdcSettings, table: str, entry: TableCursor) -> None:
    """Raise CaptureError, with what to do, if a table stayed behind when others came from or to the timestamp source.

    The marks of the two are never the same, without any other history.
    """
    now, before = SourceKind(settings.cdc_source), source_of(entry.position) if entry.position else None
    if settings.cdc_on_other_history != "stop" or before in (None, now) or SourceKind.TIMESTAMP not in (before, now):
        return
    come = "name it in VIEWKEEPER_CDC_TABLES" if now is SourceKind.TIMESTAMP else f"run: viewkeeper-cdc attach {table}"
    leave = "detach those there" if now is SourceKind.TIMESTAMP else "take those out of VIEWKEEPER_CDC_TABLES"
    raise CaptureError(
        f"VIEWKEEPER_CDC_SOURCE is {now}, and {table} was captured from the source {before} until now: all tables of "
        f"capture {settings.cdc_name} move together: {come}, too, and run: viewkeeper-cdc snapshot {table}; or, to "
        f"move some alone, run the capture with VIEWKEEPER_CDC_SOURCE={before} again, {leave}, and capture them under "
        "another VIEWKEEPER_CDC_NAME"
    )
