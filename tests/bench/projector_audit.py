"""An audit of many rows: how long it takes, and how much memory."""

import psycopg

from tests.bench.bench_stack import BenchStack
from tests.bench.figures import Figures
from tests.bench.processes import run_measured

AUDIT_ROWS = 500_000
TWEETS_A_USER = 4
DATABASE = "audited"

FILL = """
INSERT INTO public.users (user_id, username, joined_date)
SELECT n, 'user' || n, '2026-01-01'::timestamptz + n * interval '1 second' FROM generate_series(1, {rows}) AS n;
INSERT INTO public.tweets (tweet_id, user_id, text)
SELECT n, 1 + n % {rows}, 'a text of a few words' FROM generate_series(1, {tweets}) AS n;
INSERT INTO projector.user_information_v1 (user_id, username, joined_date, viewkeeper_present, tweet_count)
SELECT user_id, username, joined_date, true, {each} FROM public.users;
UPDATE projector.as_of SET as_of = now() + interval '1 day';
ANALYZE;
"""


def audit(stack: BenchStack, rows: int) -> Figures:
    """Measure `viewkeeper-projector audit` of a view that equals its source; raise BenchError if it does not say so."""
    stack.create_database(DATABASE)
    pipeline = stack.pipeline(source=DATABASE, view=DATABASE, topic_prefix=DATABASE)
    pipeline.migrate("demo", "view")
    with psycopg.connect(pipeline.view_url, autocommit=True) as session:
        for statement in FILL.format(rows=rows, tweets=rows * TWEETS_A_USER, each=TWEETS_A_USER).split(";")[:-1]:
            session.execute(statement.encode())
    stack.settle()
    done = run_measured(["projector.cli", "audit"], pipeline.environment)
    stack.drop_database(DATABASE)
    return {"audit_seconds": done.seconds, "audit_peak_rss_mb": done.peak_rss_bytes / 1e6, "audit_rows": rows}
