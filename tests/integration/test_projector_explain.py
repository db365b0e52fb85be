"""`viewkeeper-projector explain`: what a row is made of, whatever its values are."""

import json
from datetime import datetime

import psycopg
import pytest

from projector.errors import DefinitionError
from projector.explaining import explain
from tests.daemons import standard_output
from tests.integration.changelog import Changelog, user
from tests.integration.projector_steps import Steps, as_of
from views.user_information import user_information

pytestmark = pytest.mark.newest_postgres

JOINED = {
    1: ("2026-01-31T12:00:00.500000Z", "2026-01-31T12:00:00.5+00:00"),
    2: ("infinity", "infinity"),
    3: ("0044-03-15 00:00:00+00 BC", "0044-03-15T00:00:00+00:00 BC"),
    4: ("20000-01-01 00:00:00+00", "20000-01-01T00:00:00+00:00"),
}

STORED_OFFSETS = "SELECT partition, next_offset FROM projector.partition_offset WHERE topic = %s"


def test_a_row_with_a_time_that_python_has_not_is_explained(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    with changelog.transaction():
        for user_id, (written, _) in JOINED.items():
            changelog.put("users", user(user_id, joined_date=written))
        changelog.tweet(1, 2)
    steps.catch_up()
    with psycopg.connect(view_url, autocommit=True) as session:
        session.execute("SET TimeZone = 'UTC'")
        for user_id, (_, shown) in JOINED.items():
            row = explain(session, user_information, str(user_id), where="test").row
            assert row is not None
            assert (row["user_id"], row["joined_date"]) == (user_id, shown)
        with pytest.raises(DefinitionError, match="'x' is no key"):
            explain(session, user_information, "x", where="test")
        session.execute(f"ALTER DATABASE {session.info.dbname} SET TimeZone = 'Asia/Tokyo'")
    found = json.loads(standard_output(settings_env, "projector", "explain", "user_information", "1", "--json"))
    assert found["row"]["joined_date"] == JOINED[1][1]


def test_partitions_offsets_and_as_of_are_those_that_the_row_is_of(
    steps: Steps, changelog: Changelog, view_url: str, settings_env: dict[str, str]
) -> None:
    with changelog.transaction():
        changelog.put("users", user(1, "\x1b[31mred"))
        for number in range(20):
            changelog.tweet(number, 1)
        changelog.watermark()
    steps.catch_up()
    found = json.loads(standard_output(settings_env, "projector", "explain", "user_information", "1", "--json"))
    with psycopg.connect(view_url) as session:
        stored: dict[int, int] = dict(session.execute(STORED_OFFSETS, [changelog.topic("tweets")]).fetchall())
    measure = found["measures"][0]
    assert (measure["measure"], measure["topic"]) == ("tweet_count", changelog.topic("tweets"))
    assert dict(enumerate(measure["next_offsets"])) == stored
    assert len(set(stored.values())) > 1
    assert datetime.fromisoformat(found["as_of"]) == as_of(view_url)[0]
    wide = {**settings_env, "COLUMNS": "200"}
    text = standard_output(wide, "projector", "explain", "user_information", "1")
    offsets = ", ".join(f"{partition}: {offset}" for partition, offset in sorted(stored.items()))
    assert f"{changelog.topic('tweets')} {offsets}" in text
    assert found["as_of"][:19] in text
    assert "\\x1b[31mred" in text
    assert "\x1b" not in text
