"""How far topics without a cursor are thought to be applied: an estimate from the times of their records. Pure."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from projector.offsets import StoredOffset
from projector.topics import Topic


def estimated_times(stored: Iterable[StoredOffset], topics: Mapping[str, Topic]) -> dict[str, datetime]:
    """Return by topic the time that its applied records seem to come up to; none of topics that give no answer.

    `stored` was read before the `topics` were described. A partition that is read to its end holds nothing back, and
    the newest record of them all says how far the writer has come. One that is not holds the topic at its last record,
    since all that follows is newer; if that is not known, nothing is.
    """
    newest: dict[str, datetime] = {}
    behind: dict[str, datetime | None] = {}
    for at in stored:
        topic, known = topics.get(at.topic), at.record_time
        if topic is None or topic.topic_id != at.topic_id or at.partition >= len(topic.high):
            continue
        if known is not None:
            newest[at.topic] = max(known, newest.get(at.topic, known))
        if at.next_offset < topic.high[at.partition]:
            before = behind.get(at.topic, known)
            behind[at.topic] = min(known, before) if known is not None and before is not None else None
    found = {topic: behind.get(topic, time) for topic, time in newest.items()}
    return {topic: time for topic, time in found.items() if time is not None}
