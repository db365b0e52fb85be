"""What may arrive, case by case, in JSON and Avro, for counts and for sums with filters: a recomputation each time.

Compacted topics are in test_projector_histories.py, instances that are killed and paused in test_torture_projector.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
import pytest

import tests.accounts
from compose.local.kafka import KafkaBroker
from projector.kept import apply_batch
from runtime.settings import ProjectorSettings
from tests.accounts import AVRO_TYPES, KEYS, SHOWN, Truth, Witness, account, on_the_wire
from tests.integration.avro_changelog import AvroChangelog
from tests.integration.changelog import Changelog
from tests.integration.projector_steps import Steps, projector_settings, projector_steps

pytestmark = pytest.mark.newest_postgres


@dataclass
class Cases:
    """A view of accounts, the topics that it is kept from, and what it must come to."""

    settings: ProjectorSettings
    changelog: Changelog
    steps: Steps
    session: psycopg.Connection
    truth: Truth
    witness: Witness

    @contextmanager
    def published(self) -> Iterator[None]:
        """Publish what is put inside."""
        with self.changelog.transaction():
            yield

    def owner(self, key: int, name: str) -> None:
        self._put("owners", key, {"owner_id": key, "name": name})

    def item(self, key: int, owner: int | None, state: str, price: str, *, holder: int | None = None) -> None:
        row = {"owner_id": owner, "holder_id": holder, "state": state, "price": Decimal(price), "pieces": 3}
        self._put("items", key, {"item_id": key, **row})

    def letter(self, key: int, owner: int | None, stamp: str | None) -> None:
        self._put("letters", key, {"letter_id": key, "owner_id": owner, "stamp": Decimal(stamp) if stamp else None})

    def gone(self, table: str, key: int) -> None:
        self.truth.note(table, key, None)
        self.changelog.remove(table, key)

    def come_to(self, *expected: tuple[Any, ...]) -> None:
        """Catch up; the view shows these rows: owner, name, items, lent ones, worth, letters, postage."""
        self.steps.catch_up()
        self.are(*expected)

    def are(self, *expected: tuple[Any, ...]) -> None:
        """See that the view shows these rows, which are a recomputation, and nothing behind them is left."""
        self.witness.look(self.session)
        assert self.witness.wrong == []
        found = self.session.execute(f"{SHOWN} ORDER BY 1".encode()).fetchall()
        assert {row[0]: row[1:] for row in found} == self.truth.shown()
        assert [tuple(str(value) for value in row) for row in found] == [tuple(map(str, row)) for row in expected]

    def _put(self, table: str, key: int, row: dict[str, Any]) -> None:
        self.truth.note(table, key, row)
        self.changelog.put(table, on_the_wire(row))


@pytest.fixture(params=["json", "avro"])
def encoding(request: pytest.FixtureRequest) -> dict[str, str]:
    """Give the settings of an encoding."""
    chosen: dict[str, str] = request.getfixturevalue("avro") if request.param == "avro" else {}
    return chosen


@pytest.fixture
def cases(account_url: str, kafka: KafkaBroker, topic_prefix: str, encoding: dict[str, str]) -> Iterator[Cases]:
    changelog = _changelog(kafka.bootstrap_servers, topic_prefix, encoding)
    changelog.create()
    settings = projector_settings(
        {
            "VIEWKEEPER_VIEW_URL": account_url,
            "VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "VIEWKEEPER_TOPIC_PREFIX": topic_prefix,
            "VIEWKEEPER_VIEWS": tests.accounts.__file__,
            **encoding,
        }
    )
    truth = Truth()
    with (
        projector_steps(settings, views=[account]) as steps,
        psycopg.connect(account_url, autocommit=True) as session,
    ):
        yield Cases(settings, changelog, steps, session, truth, Witness(truth))


def _changelog(bootstrap_servers: str, prefix: str, encoding: dict[str, str]) -> Changelog:
    if not encoding:
        return Changelog(bootstrap_servers, prefix, KEYS, partitions=2)
    url = encoding["VIEWKEEPER_SCHEMA_REGISTRY_URL"]
    return AvroChangelog(bootstrap_servers, prefix, KEYS, partitions=2, registry_url=url, types=AVRO_TYPES)


def fill(cases: Cases) -> None:
    with cases.published():
        cases.owner(1, "ann")
        cases.owner(2, "bob")
        cases.item(1, 1, "lent", "1.50", holder=2)
        cases.item(2, 1, "lost", "100")
        cases.letter(1, 2, "0.90")


FILLED = ((1, "ann", 2, 0, "4.5", 0, 0), (2, "bob", 0, 1, 0, 1, "0.9"))


class TestOfOneInstance:
    def test_redelivery(self, cases: Cases) -> None:
        for _ in range(2):
            fill(cases)
            cases.come_to(*FILLED)

    def test_replay_from_the_start(self, cases: Cases) -> None:
        fill(cases)
        with cases.published():
            cases.item(1, 2, "here", "7")
            cases.gone("letters", 1)
        after = (1, "ann", 1, 0, 0, 0, 0), (2, "bob", 1, 0, 21, 0, 0)
        cases.come_to(*after)
        cases.session.execute("UPDATE projector.partition_offset SET next_offset = 0")
        cases.steps.consumer.rewind()
        cases.witness.forget()
        cases.come_to(*after)

    def test_tombstones_of_rows_never_seen(self, cases: Cases) -> None:
        with cases.published():
            for table in KEYS:
                cases.gone(table, 1)
        cases.come_to()
        assert cases.session.execute("SELECT count(*) FROM projector.account_v1").fetchone() == (0,)

    def test_owner_change_with_and_without_the_filter(self, cases: Cases) -> None:
        fill(cases)
        cases.steps.catch_up()
        with cases.published():
            cases.item(1, 2, "lent", "1.50", holder=1)
            cases.item(2, 1, "here", "100")
            cases.letter(1, None, "0.90")
        cases.come_to((1, "ann", 1, 1, 300, 0, 0), (2, "bob", 1, 0, "4.5", 0, 0))
        with cases.published():
            cases.item(1, 2, "lost", "1.50", holder=1)
            cases.item(2, None, "here", "100")
        cases.come_to((1, "ann", 0, 0, 0, 0, 0), (2, "bob", 1, 0, 0, 0, 0))

    def test_parent_after_child(self, cases: Cases) -> None:
        with cases.published():
            cases.item(1, 1, "here", "2", holder=None)
            cases.letter(1, 1, "0.90")
        cases.come_to()
        with cases.published():
            cases.owner(1, "ann")
        cases.come_to((1, "ann", 1, 0, 6, 1, "0.9"))

    def test_parent_deleted_and_born_again(self, cases: Cases) -> None:
        fill(cases)
        cases.steps.catch_up()
        with cases.published():
            cases.gone("owners", 1)
            cases.item(3, 1, "here", "-1.1")
        cases.come_to(FILLED[1])
        with cases.published():
            cases.owner(1, "eve")
            cases.gone("items", 1)
        cases.come_to((1, "eve", 2, 0, "-3.3", 0, 0), (2, "bob", 0, 0, 0, 1, "0.9"))

    @pytest.mark.parametrize("max_records", [1, 2, 4])
    def test_batch_cut_anywhere(self, cases: Cases, max_records: int) -> None:
        for price in ("1", "2", "1.50"):
            with cases.published():
                cases.item(1, 2, "here", price)
                cases.gone("owners", 1)
                cases.letter(1, 1, price)
            fill(cases)
        cases.steps.catch_up(max_records)
        cases.are(*FILLED)


class TestOfTwoInstances:
    def test_one_wakes_with_a_batch_that_the_other_has_applied(self, cases: Cases) -> None:
        fill(cases)
        late = cases.steps.read()
        while len(late.records) < len(KEYS):
            cases.steps.consumer.rewind()
            late = cases.steps.read()
        with projector_steps(cases.settings, views=[account]) as other:
            other.catch_up()
            with cases.published():
                cases.item(1, 2, "lent", "5", holder=1)
                cases.letter(1, 1, None)
            other.catch_up()
        now = (1, "ann", 1, 1, 0, 1, 0), (2, "bob", 1, 0, 15, 0, 0)
        cases.are(*now)
        assert not apply_batch(cases.steps.connection, cases.steps.kept, late)
        cases.are(*now)
        cases.steps.consumer.rewind()
        cases.come_to(*now)
