"""A rebuild, step by step: each step is one that can be killed, and is found and gone on with by the next command.

begin → fill → make ready → meet → compare → swap. States in the registry say which of them is next.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog
from psycopg import Connection
from psycopg.errors import ProgramLimitExceeded

from cdc.wire import cursor_topic_name
from projector.changelog import is_captured
from projector.comparing import Comparison, compare
from projector.daemon import SESSION_SETTINGS
from projector.definition import View
from projector.errors import NotApplicable, Refused
from projector.filling import Filling, Progress, demand_unmoved, filling_group, open_filling, why_stuck
from projector.lenient import leniency
from projector.locks import changing_versions, keepers
from projector.meeting import Pair, still_apart
from projector.registry import (
    KEPT,
    Registered,
    State,
    ViewVersion,
    demand_migrated,
    is_declared,
    set_state,
    versions_of,
)
from projector.stable_name import demand_free_name, show
from projector.swapping import Apart, swap
from projector.tables import create_indexes
from projector.versions import drop_version, make_version
from runtime.postgres import connect, describe, translated
from runtime.settings import ProjectorSettings, variable
from runtime.stop import Stop

log = structlog.get_logger()

CLIENT_NAME = "viewkeeper-rebuild"
MEET_POLL_SECONDS = 0.1


class Stopped(Exception):  # noqa: N818 - the state, not a failure
    """The command was asked to stop; what is done is stored."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Versions that do not stand at one point yet, and why; `is_kept` says whether a `run` brings them there."""

    reason: str
    is_kept: bool


class Versions:
    """Changes the versions of one view; made by `open_versions`, which lets nobody else do so."""

    def __init__(
        self, settings: ProjectorSettings, connection: Connection, name: str, stop: Stop, *, wait_seconds: float
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._name = name
        self._stop = stop
        self._wait_seconds = wait_seconds
        self._cursor_topic = cursor_topic_name(settings.topic_prefix)

    def find(self, *states: State) -> ViewVersion | None:
        """Return the view's version in one of these states, None if there is none."""
        return next((one.kept for one in versions_of(self._connection, self._name) if one.state in states), None)

    def begin(self, view: View) -> Registered:
        """Return the version to go on with, in state `building` or `ready`; one that is declared otherwise is dropped.

        Raises Refused when a former version is still there, something depends on what the swap would drop, or keys have
        moved between a topic's partitions.
        """
        versions = versions_of(self._connection, self._name)
        for one in versions:
            if one.state not in (State.BUILDING, State.READY):
                continue
            stuck = why_stuck(self._settings, self._connection, one.kept)
            if is_declared(one.kept.view, view) and not stuck:
                log.info("resuming", view=self._name, version=one.kept.version, state=one.state)
                return one
            log.info("starting_again", view=self._name, version=one.kept.version, reason=stuck or "declared otherwise")
            drop_version(self._connection, one.kept, wait_seconds=self._wait_seconds)
            versions.remove(one)
            break
        self._demand_no_former(versions)
        for one in versions:
            demand_unmoved(self._settings, self._connection, one.kept, view)
        made = make_version(self._connection, view, versions)
        log.info("building", view=self._name, version=made.version)
        return Registered(made, State.BUILDING)

    def fill(self, version: ViewVersion) -> Generator[Progress, None, None]:
        """Fill a version from its stored offsets, or the topics' beginning, to their ends, and make its indexes.

        Raises Refused when an index takes a row's values for too long.
        """
        # Last is faster; but only an index that is there refuses one record, which can be left out.
        are_indexes_first = leniency(self._settings).dead_letters > 0
        if are_indexes_first:
            self._create_indexes(version, then=f"viewkeeper-projector drop {self._name}, and rebuild it anew")
        with self._filling([version]) as filling:
            yield from self._to_the_end(filling)
            if version.view.indexes and not are_indexes_first:
                then = f"set {variable('projector_on_bad_record')}=dead_letter to leave such rows out"
                self._create_indexes(version, then=then)
                # More has come meanwhile.
                filling.look_again()
                yield from self._to_the_end(filling)

    def make_ready(self, version: ViewVersion) -> None:
        """Hand a filled version over to `run`, which keeps it beside the others from now on."""
        set_state(self._connection, version, State.READY)

    def pair(self, new: ViewVersion) -> Pair | None:
        """Return the version that readers see with the one that is to take its place, None if they see none yet."""
        old = self.find(State.ACTIVE)
        return None if old is None else Pair(old, new, why_stuck(self._settings, self._connection, old))

    def meet(self, pair: Pair) -> Iterator[Waiting]:
        """Wait until both versions stand at one point; without a `run` that keeps them this process does.

        An old version that cannot be kept any more is left where it is, `stuck`; so is one that a record cannot be
        applied to, for instance since its table has lost a column.
        """
        while not self._is_kept(pair):
            try:
                yield from self._bring_together(pair)
            except NotApplicable as error:
                if pair.stuck or error.version != pair.old.version:
                    raise
                pair.stuck = str(error)
                continue
            if not self._still_apart(pair):
                return
        while reason := self._still_apart(pair):
            yield Waiting(reason, is_kept=True)
            self._check_stop(MEET_POLL_SECONDS)
            self._demand_kept(pair.new)
            if not self._is_kept(pair):
                yield from self.meet(pair)

    def compare(self, pair: Pair) -> Comparison | None:
        """Compare both versions; None if they are apart again: then they have to meet again."""
        return compare(self._connection, pair, cursor_topic=self._cursor_topic)

    def swap(self, pair: Pair) -> float | None:
        """Swap, and return for how many seconds the name was locked; None if the versions are apart again.

        An old version that could not be kept any more is dropped.
        """
        try:
            lock_seconds = swap(
                self._connection, pair, cursor_topic=self._cursor_topic, wait_seconds=self._wait_seconds
            )
        except Apart:
            return None
        if pair.stuck:
            with suppress(Refused):  # `drop` says why, and removes it later
                self.drop(pair.old)
        return lock_seconds

    def show_first(self, version: ViewVersion) -> None:
        """Show the first version that a view has."""
        with self._connection.transaction():
            # As when it was begun: somebody may have taken the name meanwhile.
            demand_free_name(self._connection, version.view)
            show(self._connection, version)
            set_state(self._connection, version, State.ACTIVE)

    def unseen(self, number: int | None) -> ViewVersion:
        """Return the version of this number, or the only one, that readers do not see; raises Refused without one."""
        versions = versions_of(self._connection, self._name)
        found = [one for one in versions if number in (None, one.kept.version)]
        unseen = [one.kept for one in found if one.state is not State.ACTIVE]
        if len(unseen) == 1:
            return unseen[0]
        what = "choose one with --version" if unseen else "there is none to drop: readers see the active one"
        raise Refused(f"view {self._name!r} has versions {_listed(versions) or 'none'}: {what}")

    def undeclared(self, number: int | None) -> Registered:
        """Return a version of a view that is declared no more, by its number, be it the one that readers see.

        Raises Refused without one, and while somebody keeps the view, or captures it as a topic.
        """
        versions = versions_of(self._connection, self._name)
        if not versions:
            raise Refused(f"there is no view {self._name!r}, neither in VIEWKEEPER_VIEWS nor in the database")
        found = next((one for one in versions if one.kept.version == number), None)
        if found is None:
            raise Refused(
                f"view {self._name!r} is not declared in VIEWKEEPER_VIEWS, and has versions {_listed(versions)}: "
                "choose one with --version; with the active one goes the view itself"
            )
        if keepers(self._connection, self._name):
            raise Refused(
                f"a viewkeeper-projector run keeps view {self._name!r}, which is not in this command's "
                "VIEWKEEPER_VIEWS: name its module there, or stop that run first"
            )
        if is_captured(self._connection, self._name, found.kept.version):
            raise Refused(f"view {self._name!r} is captured as a topic: detach it from its capture first")
        return found

    def drop(self, version: ViewVersion, *, is_shown: bool = False) -> None:
        """Drop a version, and with one that `is_shown` the view's name; raises Refused as `drop_version` does."""
        drop_version(self._connection, version, wait_seconds=self._wait_seconds, is_shown=is_shown)
        log.info("dropped", view=self._name, version=version.version)

    def _demand_no_former(self, versions: list[Registered]) -> None:
        former = [one.kept.version for one in versions if one.state in (State.PREVIOUS, State.RETIRED)]
        if former:
            raise Refused(
                f"view {self._name!r} still has its former version {former[0]}: roll back to it, or drop it first:\n"
                f"viewkeeper-projector drop {self._name}"
            )

    @contextmanager
    def _filling(self, versions: list[ViewVersion]) -> Iterator[Filling]:
        group = filling_group(self._settings, self._connection, self._name)
        with open_filling(self._settings, self._connection, versions, group=group) as filling:
            yield filling

    def _create_indexes(self, version: ViewVersion, *, then: str) -> None:
        try:
            create_indexes(self._connection, version.view, version.version)
        except ProgramLimitExceeded as error:
            raise Refused(
                f"version {version.version} of view {self._name!r} has a value that is too long for a declared index: "
                f"{' '.join(str(error).split())}. Shorten it, or take the index out of the view, or {then}"
            ) from error

    def _to_the_end(self, filling: Filling) -> Iterator[Progress]:
        while not filling.caught_up:
            yield filling.step()
            self._check_stop()

    def _bring_together(self, pair: Pair) -> Iterator[Waiting]:
        """Keep the versions until they stand at one point, or somebody else keeps them."""
        with self._filling([pair.new] if pair.stuck else list(pair.ascending)) as filling:
            while not self._is_kept(pair):
                filling.step()
                reason = self._still_apart(pair)
                if filling.caught_up and reason is None:
                    return
                yield Waiting(reason or "the ends of their topics are not reached", is_kept=False)
                self._check_stop()

    def _demand_kept(self, version: ViewVersion) -> None:
        """Raise Refused where the `run` that keeps the view has left a version, which would be waited for in vain."""
        if version not in [one.kept for one in versions_of(self._connection, self._name) if one.state in KEPT]:
            raise Refused(
                f"version {version.version} of view {self._name!r} cannot be kept any longer: a record cannot be "
                "applied to it, which viewkeeper-projector run has logged (version_left)"
            )

    def _is_kept(self, pair: Pair) -> bool:
        """Return whether a `run` keeps the view; none can while its old version is stuck."""
        return not pair.stuck and bool(keepers(self._connection, self._name))

    def _still_apart(self, pair: Pair) -> str | None:
        return still_apart(self._connection, pair, cursor_topic=self._cursor_topic)

    def _check_stop(self, seconds: float = 0.0) -> None:
        if self._stop.wait(seconds):
            raise Stopped


def _listed(versions: list[Registered]) -> str:
    return ", ".join(f"{one.kept.version} ({one.state})" for one in versions)


@contextmanager
def open_versions(settings: ProjectorSettings, name: str, stop: Stop, *, wait_seconds: float) -> Iterator[Versions]:
    """Open what changes a view's versions.

    Raises ConfigurationError when the database is not migrated, Refused while another session changes them.
    """
    where = describe(settings.view_url)
    with (
        connect(settings.view_url, name=CLIENT_NAME, settings=SESSION_SETTINGS) as connection,
        translated(where),
    ):
        demand_migrated(connection, where=where)
        with changing_versions(connection, name):
            yield Versions(settings, connection, name, stop, wait_seconds=wait_seconds)
