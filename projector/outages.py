"""Outages in which a topic may have forgotten deletes: a tombstone is compacted away after `delete.retention.ms`."""

from collections.abc import Mapping, Sequence

import structlog

from projector.offsets import StoredOffset
from projector.topics import Topic
from runtime.kafka import LostHistory
from runtime.settings import variable
from runtime.words import duration_words

log = structlog.get_logger()


def at_end(topics: Mapping[str, Topic], stored: Sequence[StoredOffset]) -> list[StoredOffset]:
    """Return the stored offsets, read before the topics were described, after which their partitions held nothing."""
    return [at for at in stored if _end(topics, at) == at.next_offset]


def outage(view: str, topics: Mapping[str, Topic], stored: Sequence[StoredOffset]) -> str | None:
    """Return in words that a view was left alone for too long while its tables changed, None if it was not."""
    missed = [
        (at.age_seconds, topics[at.topic])
        for at in stored
        if at.next_offset < _end(topics, at) and at.age_seconds > topics[at.topic].delete_retention_seconds
    ]
    if not missed:
        return None
    age_seconds, topic = max(missed, key=lambda one: one[0])
    return (
        f"view {view!r} was not kept for {duration_words(age_seconds)}, and topic {topic.name}, which has new records, "
        f"holds deletes for {duration_words(topic.delete_retention_seconds)} (delete.retention.ms): some may be gone, "
        f"and their rows would stay for ever. Build the view anew beside it:\nviewkeeper-projector rebuild {view}\n"
        f"or start once with {variable('projector_on_long_outage')}=go_on, and see whether rows stayed:\n"
        f"viewkeeper-projector audit {view}"
    )


def demand_no_outage(view: str, topics: Mapping[str, Topic], stored: Sequence[StoredOffset], *, go_on: bool) -> None:
    """Raise LostHistory after an outage that was too long; with `go_on` log it."""
    trouble = outage(view, topics, stored)
    if trouble and not go_on:
        raise LostHistory(trouble)
    if trouble:
        log.warning("long_outage", view=view, reason=trouble)


def _end(topics: Mapping[str, Topic], at: StoredOffset) -> int:
    topic = topics.get(at.topic)
    return topic.high[at.partition] if topic and at.partition < len(topic.high) else -1
