"""The live table, the plain lines and the closing summary: figures in words."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from compose.demo.figures import Figures
from compose.demo.latencies import Summary
from compose.demo.population import ZCOX_ID
from compose.demo.probe import ProbeReport
from compose.demo.workload import WorkloadReport

UNKNOWN = "…"


def live_table(figures: Figures, *, api_url: str, seconds: float | None) -> Group:
    """Return what the terminal shows while the demo runs; fits into 80 columns."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("workload", workload_words(figures.workload))
    table.add_row("captured", rate_words(figures.captured_per_second, "changes/s"))
    table.add_row("applied", rate_words(figures.applied_per_second, "records/s"))
    table.add_row("lag", UNKNOWN if figures.lag_records is None else f"{figures.lag_records} records")
    table.add_row("freshness", freshness_words(figures.probe))
    table.add_row("reads", reads_words(figures.probe))
    table.add_row("audit", _audit_text(figures))
    until = f"{figures.elapsed_seconds:.0f} s of {seconds:g} s" if seconds else f"{figures.elapsed_seconds:.0f} s"
    head = Text.assemble(("\nViewkeeper demo", "bold cyan"), f"   {until}, Ctrl-C ends it\n")
    return Group(head, table, Text(f"\n{page_line(api_url)}"), Text(curl_line(api_url), style="dim"))


def plain_line(figures: Figures) -> str:
    """Return the figures as one line, for logs."""
    lag = UNKNOWN if figures.lag_records is None else figures.lag_records
    audit = figures.verdict.words if figures.verdict else f"audit {UNKNOWN}"
    return (
        f"{figures.elapsed_seconds:.0f} s: captured {rate_words(figures.captured_per_second, 'changes/s')}, "
        f"applied {rate_words(figures.applied_per_second, 'records/s')}, lag {lag} records; "
        f"freshness {freshness_words(figures.probe)}; reads {reads_words(figures.probe)}; {audit}"
    )


def curl_line(api_url: str) -> str:
    """Return a command that shows a user as the service does."""
    return f"curl {api_url}/users/{ZCOX_ID}"


def page_line(api_url: str) -> str:
    """Return the address of the page that shows the same user change, and the pipeline at work."""
    return f"watch it: {api_url}/live#userId={ZCOX_ID}"


def workload_words(report: WorkloadReport | None) -> str:
    """Say what the workload has done."""
    if report is None:
        return UNKNOWN
    behind = f"; {report.behind_seconds:.1f} s behind its plan" if report.behind_seconds > 1 else ""
    return (
        f"{report.changes} changes in {report.transactions} transactions, {report.rolled_back} more rolled back{behind}"
    )


def freshness_words(report: ProbeReport | None) -> str:
    """Say how long a commit takes to be visible over HTTP."""
    if report is None or report.freshness.count == 0:
        return UNKNOWN
    p50, p95, greatest = _milliseconds(report.freshness)
    return f"p50 {p50}, p95 {p95}, max {greatest} from commit to HTTP reply"


def reads_words(report: ProbeReport | None) -> str:
    """Say how long a read takes."""
    if report is None or report.reads.count == 0:
        return UNKNOWN
    _, p95, _ = _milliseconds(report.reads)
    errors = f", {report.read_errors} errors" if report.read_errors else ""
    return f"p95 {p95} of {report.reads.count} requests to the API{errors}"


def rate_words(rate: float | None, unit: str) -> str:
    """Say a rate."""
    return UNKNOWN if rate is None else f"{rate:.0f} {unit}"


def _audit_text(figures: Figures) -> Text:
    if figures.verdict is None:
        return Text(UNKNOWN)
    style = "green" if figures.verdict.equal else "bold red"
    return Text.assemble((figures.verdict.words, style), f"\n{figures.verdict_age_seconds or 0:.0f} s ago")


def _milliseconds(summary: Summary) -> tuple[str, str, str]:
    p50, p95, greatest = (
        UNKNOWN if seconds is None else f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
        for seconds in (summary.p50_seconds, summary.p95_seconds, summary.max_seconds)
    )
    return p50, p95, greatest
