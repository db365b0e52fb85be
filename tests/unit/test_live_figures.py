"""What the page says of looks at the pipeline: figures and words."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from api.cursor_look import Word
from api.figures import Heard, ViewFigures, applied_records, view_figures
from api.latencies import LatencyCounts
from api.trouble import database_troubles, kafka_troubles, view_troubles
from api.view_look import DatabaseLook, Partition, StoredView
from cdc.cursor import Cursor, Reading, Sweep, TableCursor, Watermark
from views.user_information import user_information

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
AT = 1000.0
TABLES = ("users", "tweets", "follows", "likes")


def entry(table: str, *next_offsets: int, **changed: Any) -> TableCursor:
    """Give a table whose topic is complete, with a watermark of this moment."""
    watermark = Watermark(time=NOW, next_offsets=next_offsets)
    whole = TableCursor(
        topic=f"p.public.{table}", attachment=1, position="1:1:", complete=True, next_offsets=next_offsets,
        watermark=watermark,
    )  # fmt: skip
    return replace(whole, **changed)


def word(tables: Mapping[str, TableCursor], *, capture: str = "main", offset: int = 1, heard_at: float = AT) -> Word:
    named = {f"public.{table}": one for table, one in tables.items()}
    return Word(Cursor(capture=capture, token="t", tables=named), offset, heard_at)


def well(**changed: TableCursor) -> Word:
    """Give the word of a capture of all tables, each at offset 10, some changed."""
    return word({table: entry(table, 10) for table in TABLES} | changed)


def look(
    as_of: datetime | None = NOW,
    *,
    next_offsets: Mapping[Partition, int] | None = None,
    flags: tuple[str, ...] = (),
    dead_letters: int | None = 0,
) -> DatabaseLook:
    """Give a look at a view that has applied up to offset 10 of each topic, or up to others."""
    stored = {(f"p.public.{table}", 0): 10 for table in TABLES} | dict(next_offsets or {})
    view = StoredView(as_of=as_of, flags=flags, next_offsets=stored, dead_letters=dead_letters)
    return DatabaseLook(now=NOW, role="api", views={"user_information": view}, refused=())


def figures(database: DatabaseLook | None, *words: Word) -> ViewFigures:
    return view_figures(user_information, database, Heard(words, NOW, AT), prefix="p")


def words(found: ViewFigures, *, limits: bool = False) -> list[str]:
    """Return what is wrong, or what only limits the figures."""
    troubles = view_troubles(user_information, found, is_stored=True, is_heard=True)
    return [trouble.what for trouble in troubles if trouble.limits is limits]


def test_lag_is_what_is_published_and_not_applied_and_never_less_than_none() -> None:
    ahead = {("p.public.users", 0): 11, ("p.public.tweets", 0): 4, ("p.public.tweets", 1): 7}
    found = figures(look(next_offsets=ahead), well(tweets=entry("tweets", 9, 8)))
    assert [table.lag_records for table in found.tables] == [0, 6, 0, 0]
    assert found.lag_records == 6


def test_what_is_applied_is_counted_in_source_topics_alone_whatever_the_prefix() -> None:
    database = look(next_offsets={("p.cursor", 0): 1_000, ("other.public.users", 0): 2})
    assert applied_records(user_information, database) == 4 * 10 + 2


def test_of_two_captures_of_a_topic_the_one_that_spoke_last_counts() -> None:
    old = word({"users": entry("users", 5)}, capture="old", offset=3, heard_at=AT - 100)
    new = word({"users": entry("users", 6)}, capture="new", offset=9)
    for order in ((new, old), (old, new)):
        assert figures(look(), *order).tables[0].capture == "new"


def test_ages_are_those_of_the_look_and_the_oldest_table_counts() -> None:
    late = replace(entry("likes", 10), watermark=Watermark(time=NOW - timedelta(seconds=3), next_offsets=(10,)))
    own = word({"user_information": entry("user_information", 5)}, capture="of-the-view")
    found = figures(look(NOW - timedelta(seconds=4)), well(likes=late), own)
    assert (found.freshness_seconds, found.capture_age_seconds) == (4.0, 3.0)
    assert found.topic is not None
    assert (found.topic.capture, found.topic.age_seconds) == ("of-the-view", 0.0)
    unread = figures(look(), well(likes=entry("likes", 10, watermark=None)))
    assert unread.capture_age_seconds is None


def test_nothing_is_said_of_what_is_well() -> None:
    found = figures(look(), well())
    assert words(found) == words(found, limits=True) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"position": None, "complete": False}, "public.tweets waits to be read anew"),
        (
            {"complete": False, "reading": Reading(began=NOW, rows=1234)},
            "public.tweets is being read, its snapshot is not complete: 1,234 rows so far",
        ),
        (
            {"complete": False, "sweep": Sweep(next_offsets=(1,), end_offsets=(2,))},
            "public.tweets was read, and keys that are gone are being looked for",
        ),
        ({"held_back": ('{"tweet_id":1}', '{"tweet_id":2}')}, "public.tweets: 2 rows are held back, too large"),
        (
            {"watermark": Watermark(time=NOW - timedelta(seconds=75), next_offsets=(10,))},
            "public.tweets: its watermark is 1 min 15 s old, though its capture is at work",
        ),
    ],
)
def test_a_table_that_is_not_complete_is_named(changed: dict[str, Any], said: str) -> None:
    found = words(figures(look(), well(tweets=entry("tweets", 10, **changed))))
    assert found[0].startswith(said)


def test_an_uncertain_watermark_limits_what_is_known() -> None:
    watermark = Watermark(time=NOW, next_offsets=(10,), uncertain=True)
    found = figures(look(), well(users=entry("users", 10, watermark=watermark)))
    assert words(found) == []
    assert words(found, limits=True) == ["public.users: its watermark is uncertain"]


def test_a_capture_that_says_nothing_is_named_once_with_how_long() -> None:
    late = {
        table: entry(table, 10, watermark=Watermark(time=NOW - timedelta(20), next_offsets=(10,))) for table in TABLES
    }
    found = figures(look(NOW - timedelta(20)), word(late, heard_at=AT - 20))
    assert words(found) == ["Capture main has said nothing for 20 s"]


def test_a_table_that_no_capture_names_is_wrong_unless_others_write_its_topic() -> None:
    one_less = word({table: entry(table, 10) for table in TABLES[1:]})
    said = ["No capture names public.users: how far it has come is not known"]
    assert words(figures(look(), one_less)) == said
    estimated = figures(look(flags=("estimate",)), one_less)
    assert (words(estimated), words(estimated, limits=True)) == ([], said)


def test_a_projector_that_stands_or_is_slow_is_told_from_one_that_keeps_up() -> None:
    waiting = figures(look(NOW - timedelta(seconds=8), next_offsets={("p.public.likes", 0): 3}), well())
    assert words(waiting) == ["The projector is 7 records behind: user_information is 8.0 s older than they"]
    standing = replace(waiting, standing_seconds=30.0)
    assert words(standing) == ["The projector is 7 records behind, and none was applied for 30 s"]
    idle = figures(look(NOW - timedelta(seconds=8)), well())
    assert words(idle) == ["The projector is behind the captures: user_information is 8.0 s older than they"]
    assert words(figures(look(NOW - timedelta(seconds=2), next_offsets={("p.public.likes", 0): 3}), well())) == []


def test_the_views_topic_is_excused_by_the_view_itself() -> None:
    def own(seconds: float) -> Word:
        watermark = Watermark(time=NOW - timedelta(seconds=seconds), next_offsets=(1,), uncertain=True)
        return word({"user_information": entry("user_information", 1, watermark=watermark)}, capture="of-the-view")

    late = look(NOW - timedelta(seconds=30), next_offsets={("p.public.likes", 0): 3})
    (projector,) = words(figures(late, well(), own(31)))
    assert projector.startswith("The projector is 7 records behind")
    assert words(figures(look(), well(), own(31))) == [
        "public.user_information: its watermark is 31 s old, though its capture is at work"
    ]


def test_dead_letters_are_counted_or_told_by_the_flag_alone() -> None:
    lacks = "records that user_information lacks"
    assert words(figures(look(dead_letters=2), well())) == [f"2 dead letters: {lacks}"]
    told = figures(look(dead_letters=None, flags=("dead_letters",)), well())
    assert words(told) == [f"Dead letters: {lacks}"]


def test_without_an_as_of_or_captures_that_is_said() -> None:
    assert words(figures(look(None), well())) == ["user_information has no as-of yet"]
    found = view_figures(user_information, look(NOW - timedelta(seconds=50)), None, prefix="")
    troubles = view_troubles(user_information, found, is_stored=True, is_heard=False)
    assert [trouble.what for trouble in troubles] == ["user_information reflects nothing of the last 50 s"]
    (unset,) = kafka_troubles(None, is_set=False)
    assert unset.limits
    assert list(database_troubles(None, look())) == []


def test_the_flags_of_an_as_of_are_said_where_no_capture_is_heard() -> None:
    said = {
        flag: list(
            view_troubles(
                user_information,
                view_figures(user_information, look(flags=(flag,)), None, prefix=""),
                is_stored=True,
                is_heard=False,
            )
        )
        for flag in ("uncertain", "held_back", "estimate", "dead_letters")
    }
    assert {flag: [trouble.limits for trouble in told] for flag, told in said.items()} == {
        "uncertain": [True], "held_back": [False], "estimate": [True], "dead_letters": [],
    }  # fmt: skip
    assert words(figures(look(flags=("held_back",)), well())) == []


def test_quantiles_are_at_most_nine_percent_above_the_truth() -> None:
    counts = LatencyCounts()
    for milliseconds in range(1, 1001):
        counts.count(milliseconds / 1000, status=503 if milliseconds > 990 else 200)
    taken = counts.take()
    assert (taken.requests, taken.failed, taken.max_seconds) == (1000, 10, 1.0)
    assert 0.5 <= (taken.p50_seconds or 0) <= 0.5 * 1.0906
    assert 0.95 <= (taken.p95_seconds or 0) <= 1.0
    assert counts.take().requests == 0


def test_any_time_has_a_bucket_and_quantiles_do_not_cross() -> None:
    for seconds in (0.0, 1e-9, 1e-5, 3.0, 1e9):
        counts = LatencyCounts()
        counts.count(seconds, status=200)
        taken = counts.take()
        known = [taken.p50_seconds, taken.p95_seconds, taken.max_seconds]
        assert all(one is not None and other is not None and one <= other for one, other in pairwise(known))
