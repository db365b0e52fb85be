"""Probes: change one row, commit, ask the API for it until its reply shows the change; its stream and topic watched."""

import http.client
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from random import Random
from urllib.parse import urlsplit

import psycopg

from tests.bench.bench_stack import Pipeline
from tests.bench.errors import BenchError
from tests.bench.sightings import Sightings, place_of, stream_watched, topic_watched

PROBERS = 2
FIRST_PROBE_ID = 9_000_000_000
"""Above every id that a workload makes. A probe's user comes after the workload has read which users there are, and
goes before another one does, so that nobody else changes or deletes it."""
ASK_AGAIN_SECONDS = 0.005
PAUSE_SECONDS = 0.1
GIVE_UP_SECONDS = 30.0

_INSERT = "INSERT INTO public.users (user_id, location) VALUES (%s, %s) ON CONFLICT (user_id) DO NOTHING"
_DELETE = "DELETE FROM public.users WHERE user_id = %s"
_CHANGE = "UPDATE public.users SET location = %s, updated_at = clock_timestamp() WHERE user_id = %s"


@dataclass
class Probed:
    """Seconds from COMMIT's return until a reply, an event of the stream and a record of the topic had the change."""

    replies: list[float] = field(default_factory=list)
    events: list[float] = field(default_factory=list)
    records: list[float] = field(default_factory=list)


def probe(pipeline: Pipeline, api_url: str, *, seconds: float) -> Probed:
    """Probe from several connections at once, of a pipeline with the view's topic.

    A workload beside it has begun before. Raises BenchError when a change does not show up.
    """
    found = Probed()
    users = [FIRST_PROBE_ID + number for number in range(PROBERS)]
    with topic_watched(pipeline, users) as records, ThreadPoolExecutor(PROBERS) as threads:
        probing = [threads.submit(_probe_user, pipeline, api_url, user_id, seconds) for user_id in users]
        for user_id, probed in zip(users, probing, strict=True):
            commits, replies, events = probed.result()
            found.replies += replies
            found.events += events.latencies(commits)
            found.records += records[user_id].latencies(commits)
    return found


def _probe_user(
    pipeline: Pipeline, api_url: str, user_id: int, seconds: float
) -> tuple[list[float], list[float], Sightings]:
    random = Random(user_id)  # noqa: S311 - pauses, no secret
    commits: list[float] = []
    latencies: list[float] = []
    reader = http.client.HTTPConnection(urlsplit(api_url).netloc, timeout=GIVE_UP_SECONDS)
    try:
        with psycopg.connect(pipeline.source_url, autocommit=True, application_name="bench-probe") as connection:
            connection.execute(_INSERT, (user_id, "nowhere yet"))
            _wait_until_shown(reader, user_id, b'"userId"')
            with stream_watched(api_url, user_id) as events:
                ends_at = time.monotonic() + seconds
                while time.monotonic() < ends_at:
                    # Pauses of any length, so that probes do not fall into step with the capture's polls.
                    time.sleep(PAUSE_SECONDS * random.random())
                    place = place_of(user_id, len(latencies))
                    connection.execute(_CHANGE, (place, user_id), prepare=True)
                    commits.append(time.monotonic())
                    latencies.append(_wait_until_shown(reader, user_id, f'"{place}"'.encode()) - commits[-1])
                events.wait_for(len(commits) - 1)
            connection.execute(_DELETE, (user_id,))
    finally:
        reader.close()
    return commits, latencies, events


def _wait_until_shown(reader: http.client.HTTPConnection, user_id: int, wanted: bytes) -> float:
    """Ask until the reply has `wanted` in it; return when it did, by the monotonic clock."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < deadline:
        reader.request("GET", f"/users/{user_id}")
        reply = reader.getresponse()
        body = reply.read()
        if reply.status == HTTPStatus.OK and wanted in body:
            return time.monotonic()
        if reply.status not in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:
            raise BenchError(f"the API answered {reply.status} for user {user_id}: {body[:200]!r}")
        time.sleep(ASK_AGAIN_SECONDS)
    raise BenchError(f"a change of user {user_id} did not show up within {GIVE_UP_SECONDS:g} s")
