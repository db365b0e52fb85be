"""What another history of the source, or of Kafka, than the cursor's leads to."""

from cdc.errors import CaptureError
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
