"""Schema changes while the capture runs: rows take their new shape and nothing stops, or it stops and says why."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.daemons import Daemons
from tests.integration.captured_source import Source, insert_tweets
from tests.topics import delete_topic
from tests.waiting import meanwhile

CHANGES = {
    "added": "ALTER TABLE tweets ADD COLUMN note text DEFAULT 'new'",
    "added_empty": "ALTER TABLE tweets ADD COLUMN note text",
    "dropped": "ALTER TABLE tweets DROP COLUMN created_at",
    "renamed": "ALTER TABLE tweets RENAME COLUMN text TO words",
    "retyped": "ALTER TABLE tweets ALTER COLUMN user_id TYPE text USING 'user ' || user_id",
    "wider_key": "ALTER TABLE tweets ALTER COLUMN tweet_id TYPE integer",
}


@pytest.fixture
def tweets(source: Source) -> Source:
    """Give a source with 300 rows in tweets; tweets and users are attached."""
    source.run(insert_tweets(1, 300))
    source.attach("users", "tweets")
    return source


@pytest.mark.newest_postgres
def test_columns_change_while_rows_do(tweets: Source, daemon: Daemons) -> None:
    """The catalog is read each second, and rounds come more often: none may write rows in the shape before."""
    capture = daemon("cdc", "run", settings={"VIEWKEEPER_CDC_CHUNK_ROWS": "50"})
    tweets.wait_exact("tweets")
    tweets.run("ALTER TABLE tweets ADD COLUMN gone integer")
    for number, change in enumerate(
        (
            "ADD COLUMN note text DEFAULT 'new'",
            "DROP COLUMN gone",
            "RENAME COLUMN text TO words",
            "ALTER COLUMN user_id TYPE text USING 'user ' || user_id",
            "ALTER COLUMN tweet_id TYPE integer",
            "ADD COLUMN empty text",
        )
    ):
        with _written(tweets, "users"):
            tweets.run(
                f"ALTER TABLE tweets {change}", f"UPDATE tweets SET created_at = now() WHERE tweet_id = {number}"
            )
            tweets.wait_published("users")
        tweets.wait_exact("users", "tweets")
    assert len(capture.logged("leading")) == 1


@contextmanager
def _written(source: Source, table: str) -> Iterator[None]:
    """Write rows of a table, one after the other and no faster than small pages are read, while the body runs."""
    insert = f"INSERT INTO {table} SELECT coalesce(max(user_id), 0) + 1 FROM {table}"
    with source.session() as session:
        session.autocommit = True
        with meanwhile(lambda: session.execute(insert), every_seconds=0.002):
            yield


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("ALTER TABLE tweets RENAME TO posts", "public.tweets: the table was dropped or renamed"),
        ("ALTER TABLE tweets SET SCHEMA cdc", "public.tweets: the table was dropped or renamed"),
        ("DROP TABLE tweets", "public.tweets: the table was dropped or renamed"),
        ("BEGIN; DROP TABLE tweets; CREATE TABLE tweets (tweet_id bigint PRIMARY KEY); COMMIT", "dropped or renamed"),
    ],
    ids=["renamed", "moved", "dropped", "replaced"],
)
def test_a_table_that_is_gone_stops_it_with_advice(
    tweets: Source, daemon: Daemons, statement: str, complaint: str
) -> None:
    capture = daemon("cdc", "run")
    tweets.wait_published("tweets")
    tweets.run(statement)
    assert capture.wait() == 1
    assert complaint in capture.log_text()
    assert "viewkeeper-cdc detach public.tweets" in capture.log_text()


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("statement", "key", "what"),
    [
        ("ALTER TABLE tweets RENAME COLUMN tweet_id TO id", "id", "column tweet_id was dropped or renamed"),
        ("ALTER TABLE tweets ALTER COLUMN tweet_id TYPE text", "tweet_id", "column tweet_id was changed in type"),
        (
            "ALTER TABLE tweets DROP CONSTRAINT tweets_pkey, ADD PRIMARY KEY (tweet_id, user_id)",
            "user_id",
            "(tweet_id) is unique no longer",
        ),
    ],
    ids=["renamed", "retyped", "other_columns"],
)
def test_c11_a_changed_key_stops_it_and_the_steps_that_it_names_work(
    tweets: Source, daemon: Daemons, statement: str, key: str, what: str
) -> None:
    capture = daemon("cdc", "run")
    tweets.wait_exact("tweets")
    tweets.run(statement, "UPDATE tweets SET text = 'the writer goes on'")
    assert capture.wait() == 1
    complaint = capture.log_text()
    assert f"public.tweets: its key {what}" in complaint
    assert "detach public.tweets, delete its topic, run: viewkeeper-cdc attach public.tweets" in complaint
    assert {row.keys() >= {"tweet_id"} for row in tweets.topic("tweets").rows().values()} == {True}
    _command(daemon, "detach", "public.tweets")
    delete_topic(tweets.bootstrap_servers, tweets.topic_name("tweets"))
    _command(daemon, "attach", "public.tweets")
    daemon("cdc", "run")
    tweets.wait_exact("tweets")
    assert key in next(iter(tweets.topic("tweets").rows()))


@pytest.mark.newest_postgres
@pytest.mark.parametrize("undone", [True, False], ids=["undone", "topic_deleted"])
def test_c11_a_renamed_label_in_a_key_stops_it_and_the_steps_that_it_names_work(
    source: Source, daemon: Daemons, *, undone: bool
) -> None:
    source.run(
        "CREATE TYPE mood AS ENUM ('sad', 'glad')",
        "CREATE TABLE moods (mood mood, number integer, PRIMARY KEY (mood, number))",
        "INSERT INTO moods SELECT 'sad', i FROM generate_series(1, 50) i",
    )
    source.attach("moods")
    capture = daemon("cdc", "run")
    source.wait_exact("moods")
    source.run("ALTER TYPE mood ADD VALUE 'mad' BEFORE 'sad'", "INSERT INTO moods VALUES ('mad', 1)")
    source.wait_exact("moods")
    source.run("ALTER TYPE mood RENAME VALUE 'mad' TO 'angry'", "INSERT INTO moods VALUES ('angry', 2)")
    assert capture.wait() == 1
    for running in (capture, daemon("cdc", "run")):
        assert running.wait() == 1
        assert "public.moods: label mad of an enum in its key was renamed" in running.log_text()
        assert f"delete topic {source.topic_name('moods')}, run: viewkeeper-cdc snapshot" in running.log_text()
    if undone:
        source.run("ALTER TYPE mood RENAME VALUE 'angry' TO 'mad'")
    else:
        delete_topic(source.bootstrap_servers, source.topic_name("moods"))
    _command(daemon, "snapshot", "moods")
    daemon("cdc", "run")
    source.wait_exact("moods")


@pytest.mark.newest_postgres
def test_a_label_that_was_renamed_and_back_is_said_to_want_a_snapshot(source: Source, daemon: Daemons) -> None:
    source.run("CREATE TYPE mood AS ENUM ('sad', 'glad')", "CREATE TABLE moods (mood mood PRIMARY KEY)")
    source.attach("moods")
    capture = daemon("cdc", "run")
    source.wait_exact("moods")
    assert capture.terminate() == 0
    source.run(
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
        "INSERT INTO moods VALUES ('blue')",
        "ALTER TYPE mood RENAME VALUE 'blue' TO 'sad'",
    )
    capture = daemon("cdc", "run")
    assert capture.wait() == 1
    assert "public.moods: a key in its change log or its topic is no value of its column" in capture.log_text()
    _command(daemon, "snapshot", "moods")
    daemon("cdc", "run")
    source.wait_exact("moods")


@pytest.mark.newest_postgres
def test_c11_a_label_renamed_while_its_table_was_detached_stops_it(source: Source, daemon: Daemons) -> None:
    source.run(
        "CREATE TYPE mood AS ENUM ('sad', 'glad')",
        "CREATE TABLE moods (mood mood PRIMARY KEY)",
        "INSERT INTO moods VALUES ('sad'), ('glad')",
    )
    source.attach("moods")
    capture = daemon("cdc", "run")
    source.wait_exact("moods")
    assert capture.terminate() == 0
    _command(daemon, "detach", "moods")
    source.run("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'")
    _command(daemon, "attach", "moods")
    _command(daemon, "snapshot", "moods")
    records = len(source.topic("moods").records)
    capture = daemon("cdc", "run")
    assert capture.wait() == 1
    assert "public.moods: label sad of an enum in its key was renamed" in capture.log_text()
    assert len(source.topic("moods").records) == records


@pytest.mark.newest_postgres
@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("DROP CONSTRAINT tweets_pkey, ADD PRIMARY KEY (tweet_id)", "tweet_id integer"),
        ("DROP CONSTRAINT tweets_pkey, ADD PRIMARY KEY (user_id, tweet_id)", "user_id integer, tweet_id integer"),
        ("ALTER COLUMN tweet_id TYPE text", "tweet_id text, user_id integer"),
    ],
    ids=["other_columns", "other_order", "other_type"],
)
def test_c11_a_table_attached_with_another_key_stops_it_and_the_steps_work(
    source: Source, daemon: Daemons, change: str, key: str
) -> None:
    source.run(
        "ALTER TABLE tweets DROP CONSTRAINT tweets_pkey, ADD PRIMARY KEY (tweet_id, user_id)", insert_tweets(1, 50)
    )
    source.attach("tweets")
    capture = daemon("cdc", "run")
    source.wait_exact("tweets")
    assert capture.terminate() == 0
    _command(daemon, "detach", "public.tweets")
    source.run(f"ALTER TABLE tweets {change}")
    _command(daemon, "attach", "public.tweets")
    records = len(source.topic("tweets").records)
    capture = daemon("cdc", "run")
    assert capture.wait() == 1
    topic, complaint = source.topic_name("tweets"), capture.log_text()
    assert f"public.tweets has the key ({key})" in complaint
    assert f"topic {topic} was written with (tweet_id integer, user_id integer)" in complaint
    assert f"detach public.tweets, delete topic {topic}, attach it anew" in complaint
    assert len(source.topic("tweets").records) == records
    _command(daemon, "detach", "public.tweets")
    delete_topic(source.bootstrap_servers, source.topic_name("tweets"))
    _command(daemon, "attach", "public.tweets")
    _command(daemon, "snapshot", "public.tweets")
    daemon("cdc", "run")
    source.wait_exact("tweets")


def _command(daemon: Daemons, *words: str) -> None:
    assert daemon("cdc", *words).wait() == 0
