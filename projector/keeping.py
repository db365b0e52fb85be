"""The versions of views that an instance keeps: all that the registry has of its views, as it had them last."""

from collections.abc import Callable, Mapping, Sequence

import structlog
from psycopg import Connection

from cdc.decoding import Decoding
from projector.changes import Partition
from projector.definition import View
from projector.errors import NotApplicable
from projector.kept import KeptView, check, estimate, resume, start_offsets
from projector.lenient import Leniency
from projector.locks import say_kept
from projector.registry import LEFT, Registered, Seen, State, kept_versions, leave, look
from projector.topics import Topic

log = structlog.get_logger()


class Keeping:
    """Knows which versions are to be kept; each batch goes to all of them in one transaction.

    A version is `kept` once the topics of its tables are there, found by `find_topics`; the others wait for theirs.
    While a session has one of these, others see that its views are kept. Raises ConfigurationError as `kept_versions`
    does.
    """

    def __init__(
        self,
        connection: Connection,
        views: Sequence[View],
        topic_prefix: str,
        decoding: Decoding,
        leniency: Leniency,
        *,
        where: str,
    ) -> None:
        self._connection = connection
        self._views = views
        self._topic_prefix = topic_prefix
        self._decoding = decoding
        self._leniency = leniency
        self._where = where
        self._names = [view.name for view in views]
        self._seen: Seen = []
        self._versions: list[Registered] = []
        self._all: list[KeptView] = []
        self.kept: list[KeptView] = []
        self._absent: frozenset[str] = frozenset()
        self.take_up()
        for name in self._names:
            say_kept(connection, name)

    @property
    def topics(self) -> list[str]:
        """The topics that versions are kept from; the cursor's is one of them once it is there."""
        return sorted(frozenset[str]().union(*(view.topics for view in self.kept)) - self._absent)

    @property
    def missing(self) -> list[str]:
        """The source tables' topics that were not there when they were last looked for."""
        return sorted(self._absent & frozenset[str]().union(*(view.changelog_topics for view in self._all)))

    @property
    def waiting(self) -> list[str]:
        """The names of the views that wait for these."""
        return sorted({view.name for view in self._all if view not in self.kept})

    @property
    def shown(self) -> list[KeptView]:
        """The versions that readers see."""
        active = [view for view, one in zip(self._all, self._versions, strict=True) if one.state is State.ACTIVE]
        return [view for view in active if view in self.kept]

    def is_outdated(self) -> bool:
        """Return whether the registry has changed since the versions were taken up."""
        return look(self._connection, self._names) != self._seen

    def take_up(self) -> None:
        """Take up the versions that the registry has now; `find_topics` and `begin` are to follow."""
        self._seen = look(self._connection, self._names)
        self._versions = kept_versions(self._connection, self._views, where=self._where)
        self._all = [KeptView(one.kept, self._topic_prefix, self._decoding, self._leniency) for one in self._versions]
        self._all_topics = frozenset[str]().union(*(view.topics for view in self._all))
        self._absent, self.kept = self._all_topics, []
        log.info("keeping", versions=[f"{one.kept.view.name} {one.kept.version} {one.state}" for one in self._versions])

    def leave(self, error: NotApplicable) -> bool:
        """Keep the version no longer that a record cannot be applied to; return whether it can be left.

        That which readers see cannot. `take_up` is to follow.
        """
        found = next(
            one for one in self._versions if (one.kept.view.name, one.kept.version) == (error.view, error.version)
        )
        if found.state not in LEFT:
            return False
        leave(self._connection, found)
        log.warning("version_left", view=error.view, version=error.version, state=found.state, reason=str(error))
        return True

    def find_topics(self, describe: Callable[[Sequence[str]], Mapping[str, Topic]]) -> bool:
        """Look for topics that were absent, all at first; return whether one has come."""
        before = self._absent
        self._absent = before.difference(describe(sorted(before))) if before else before
        self.kept = [view for view in self._all if not view.changelog_topics & self._absent]
        return self._absent != before

    def begin(self, describe: Callable[[Sequence[str]], Mapping[str, Topic]]) -> None:
        """Compare stored offsets with the topics; raises LostHistory as `resume` does."""
        resume(self._connection, self.kept, lambda: describe(self.topics))

    def check(self, describe: Callable[[Sequence[str]], Mapping[str, Topic]]) -> None:
        """Compare them while the views are kept, or wait; raises LostHistory as `check` of kept.py does."""
        check(self._connection, self._all, lambda: describe(sorted(self._all_topics)))

    def estimate(self, describe: Callable[[Sequence[str]], Mapping[str, Topic]]) -> None:
        """Have views that are of topics without a cursor know how far these are applied."""
        estimate(self._connection, self.kept, lambda: describe(sorted(self._all_topics)))

    def start_offsets(self) -> dict[Partition, int]:
        """Return where the version that is furthest behind needs each partition."""
        return start_offsets(self._connection, self.kept)
