"""Writers of users who note what they have committed, and readers over HTTP whose replies are held against that.

Each key has one writer, who counts its versions: a reply reflects its as-of if it shows the newest version of by then,
or a later one.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from random import Random

import httpx
import psycopg

KEYS = 60
WRITERS = 3
READERS = 2
READ_PAUSE_SECONDS = 0.005
WRITE_PAUSE_SECONDS = 0.02
HTTP_SECONDS = 5.0
AS_OF = "viewkeeper-as-of"


@dataclass(frozen=True, slots=True)
class Version:
    """What a key was since a COMMIT that had returned by a time of the source's clock; without a row if not `alive`."""

    number: int
    alive: bool
    committed_by: datetime


@dataclass(frozen=True, slots=True)
class Reply:
    """What a reader was told at a time of its own clock, by the API process `of`; without a row `version` is None."""

    at: float
    of: int
    key: int
    status: int
    as_of: datetime | None
    version: int | None
    retry_after: str | None
    detail: str | None


@dataclass
class Writer:
    """Inserts, changes and deletes its own users, and tweets of theirs, until `over`; notes their versions.

    It does nothing while somebody else holds `working`.
    """

    url: str
    number: int
    random: Random
    over: threading.Event
    working: threading.Lock = field(default_factory=threading.Lock)
    versions: dict[int, list[Version]] = field(default_factory=lambda: defaultdict(list))
    _newest: dict[int, int] = field(default_factory=dict)

    def write(self) -> None:
        """Write, through lost connections, too."""
        while not self.over.is_set():
            try:
                with closing(psycopg.connect(self.url, autocommit=True)) as session:
                    with self.working:
                        self._settle(session)
                    while not self.over.wait(WRITE_PAUSE_SECONDS):
                        with self.working:
                            self._change(session)
            except psycopg.OperationalError:
                self.over.wait(0.2)

    def _change(self, session: psycopg.Connection) -> None:
        key = self.random.randrange(self.number, KEYS, WRITERS)
        version = self._newest[key] = self._newest.get(key, 0) + 1
        alive = self.random.random() < 0.8
        with session.transaction():
            if alive:
                session.execute(
                    "INSERT INTO users (user_id, username, description, updated_at) VALUES (%s, 'u', %s, now()) "
                    "ON CONFLICT (user_id) DO UPDATE SET description = excluded.description, updated_at = now()",
                    (key, str(version)),
                )
            else:
                session.execute("DELETE FROM users WHERE user_id = %s", (key,))
            session.execute(
                "INSERT INTO tweets (tweet_id, user_id, text) VALUES (%s, %s, %s) "
                "ON CONFLICT (tweet_id) DO UPDATE SET user_id = excluded.user_id",
                (self.random.randrange(1_000) * WRITERS + self.number, key, self.random.choice(["", "hi"])),
            )
        self._note(session, key, version, alive=alive)

    def _settle(self, session: psycopg.Connection) -> None:
        """Find out what became of commits whose end was cut off: what is there now is what each key is."""
        for key, version in self._newest.items():
            row = session.execute("SELECT description FROM users WHERE user_id = %s", (key,)).fetchone()
            known = self.versions[key][-1] if self.versions[key] else None
            if known and known.number == version:
                continue
            if row is not None and row[0] == str(version):
                self._note(session, key, version, alive=True)
            elif row is None and (known is None or known.alive):
                self._note(session, key, version, alive=False)

    def _note(self, session: psycopg.Connection, key: int, version: int, *, alive: bool) -> None:
        row = session.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        self.versions[key].append(Version(version, alive, row[0]))


class Reader:
    """Reads random users until `over`, whatever the answer; `process` says which process of the API answers now."""

    def __init__(self, port: int, random: Random, over: threading.Event) -> None:
        self._port = port
        self._random = random
        self._over = over
        self.process = 0
        self.replies: list[Reply] = []
        self.refused: list[float] = []

    def read(self) -> None:
        """Read, and note each reply, and when there was none."""
        while not self._over.is_set():
            with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=HTTP_SECONDS) as client:
                try:
                    while not self._over.wait(READ_PAUSE_SECONDS):
                        self._read(client)
                except httpx.TransportError:
                    self.refused.append(time.monotonic())
                    self._over.wait(0.05)

    def _read(self, client: httpx.Client) -> None:
        key, process = self._random.randrange(KEYS), self.process
        reply = client.get(f"/users/{key}")
        as_of = reply.headers.get(AS_OF)
        self.replies.append(
            Reply(
                at=time.monotonic(),
                of=process,
                key=key,
                status=reply.status_code,
                as_of=datetime.fromisoformat(as_of) if as_of else None,
                version=int(reply.json()["description"]) if reply.status_code == 200 else None,
                retry_after=reply.headers.get("retry-after"),
                detail=reply.json()["detail"] if reply.status_code == 503 else None,
            )
        )


@dataclass
class Traffic:
    """All writers and readers of one run."""

    writers: list[Writer]
    readers: list[Reader]

    @contextmanager
    def rest(self) -> Iterator[None]:
        """Have nobody write meanwhile."""
        with ExitStack() as resting:
            for writer in self.writers:
                resting.enter_context(writer.working)
            yield

    def new_process(self) -> None:
        """Note that another process of the API answers from now on."""
        for reader in self.readers:
            reader.process += 1

    def wrong(self) -> list[str]:
        """Return each reply that was not what its as-of says, or older than one before it of the same process."""
        versions = {key: found for writer in self.writers for key, found in writer.versions.items()}
        return [word for reader in self.readers for word in _wrong(reader.replies, versions)]


@contextmanager
def traffic(source_url: str, api_port: int, random: Random) -> Iterator[Traffic]:
    """Let writers and readers loose until the end."""
    over = threading.Event()
    randoms = [Random(random.getrandbits(64)) for _ in range(WRITERS + READERS)]  # noqa: S311 - no secret
    writers = [Writer(source_url, number, randoms[number], over) for number in range(WRITERS)]
    readers = [Reader(api_port, its_random, over) for its_random in randoms[WRITERS:]]
    with ThreadPoolExecutor(WRITERS + READERS) as executor:
        running = [executor.submit(writer.write) for writer in writers]
        running += [executor.submit(reader.read) for reader in readers]
        try:
            yield Traffic(writers, readers)
        finally:
            over.set()
    for one in running:
        one.result()


def _wrong(replies: list[Reply], versions: dict[int, list[Version]]) -> Iterator[str]:
    newest: dict[int, datetime] = {}
    for reply in replies:
        if reply.as_of is None:
            continue
        before = newest.setdefault(reply.of, reply.as_of)
        newest[reply.of] = max(before, reply.as_of)
        if reply.as_of < before:
            yield f"{reply}: its as-of is older than {before}"
        if reply.status not in (200, 404):
            continue
        due = [version for version in versions.get(reply.key, []) if version.committed_by <= reply.as_of]
        if due and not _is_as_new_as(reply, due[-1], versions[reply.key]):
            yield f"{reply}: {due[-1]} was committed by then"


def _is_as_new_as(reply: Reply, due: Version, versions: list[Version]) -> bool:
    if reply.version is not None:
        return reply.version >= due.number
    return any(not version.alive and version.number >= due.number for version in versions)
