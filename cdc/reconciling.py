"""Comparing a changelog topic with its table while both change, and having the capture repair what differs.

The topic is read once, then the table; what is unequal by then is looked at again, key by key: see `Judge`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from confluent_kafka import Message

from cdc.images import Images
from cdc.judging import TRIES_A_CONFIRMATION, Digest, Judge, Kind, Outcome, Verdict, digest
from cdc.partitions import image_key, is_astray
from cdc.records import RecordReader
from cdc.source_rows import SourceRows
from cdc.watermarks import Watermarks

PIECE_RECORDS = 2_000
SETTLE_KEYS = 20_000

Verdicts = dict[bytes, Verdict]
Say = Callable[[str], None]
"""Shows how far a comparison has come, in words, instead of what was shown before."""


@dataclass(slots=True)
class Tally:
    """How many keys of topic and table there are, and what was found of them.

    `left` counts those that differ still: all that were found in a dry run. `undecided` keys changed too fast to be
    judged, or were repaired and changed too fast after it; `held_back` ones have rows that are too large for the topic.
    """

    compared: int = 0
    equal: int = 0
    found: Counter[Kind] = field(default_factory=Counter)
    undecided: int = 0
    held_back: int = 0
    repaired: int = 0
    left: int = 0


class Reconciling:
    """One table's comparison. `images` is empty at first; `reader` is at the topic's beginning.

    A key differs once that was seen as many times as there are `confirmations`.
    """

    def __init__(
        self,
        images: Images,
        reader: RecordReader,
        rows: SourceRows,
        watermarks: Watermarks,
        *,
        confirmations: int,
        say: Say,
    ) -> None:
        self._images = images
        self._reader = reader
        self._rows = rows
        self._watermarks = watermarks
        self._confirmations = confirmations
        self._say = say
        self.tally = Tally()

    def compare(self, end_offsets: Sequence[int], *, total_rows: int | None) -> None:
        """Compare all keys, and note how each differs that does for sure; the topic is read to `end_offsets` first."""
        self._read_topic(end_offsets)
        unequal = self._read_table(total_rows)
        suspects = self._images.count()
        # The others are keys of the topic that no row had.
        self.tally.compared += suspects - unequal
        judged = 0
        for keys in self._images.pages(SETTLE_KEYS):
            self._say(f"{judged:,} of {suspects:,} keys that differed at first are looked at again")
            self._note(self._settled(keys))
            judged += len(keys)

    def repair(self) -> None:
        """Have the capture publish the keys that differ, and compare them once more."""
        handed, repairable = 0, self.tally.left - self.tally.found[Kind.FOREIGN]
        for keys in self._images.pages(SETTLE_KEYS, repairable=True):
            self._say(f"{handed:,} of {repairable:,} keys that differ are published by the capture")
            self._rows.hand_over(keys)
            self._watermarks.reached(self._rows.are_taken)
            # Their first look waits for a watermark from after this.
            self._note_repaired(self._settled(keys))
            handed += len(keys)

    def _read_topic(self, end_offsets: Sequence[int]) -> None:
        total = sum(end_offsets)
        while self._reader.is_behind(end_offsets):
            self._say(f"the topic is read: {sum(self._reader.next_offsets):,} of {total:,} offsets")
            self._images.take(_images_of(self._reader.read(PIECE_RECORDS), len(end_offsets)))

    def _read_table(self, total_rows: int | None) -> int:
        """Compare all rows with the topic as it was read; return how many are unequal."""
        unequal = 0
        for rows in self._rows.chunks():
            different = self._images.compare(rows)
            unequal += different
            self.tally.compared += len(rows)
            self.tally.equal += len(rows) - different
            done = self.tally.compared
            # The planner's guess; a table may have more by now.
            about = f" of about {total_rows:,}" if total_rows is not None and total_rows >= done else ""
            self._say(f"rows are compared: {done:,}{about}, {unequal:,} to be looked at again")
        return unequal

    def _settled(self, keys: Sequence[bytes]) -> Verdicts:
        """Look at keys again and again: source, then topic once it reflects that, then source once more."""
        judge = Judge(self._confirmations)
        verdicts: Verdicts = {}
        for _ in range(TRIES_A_CONFIRMATION * self._confirmations):
            undecided = [key for key in keys if key not in verdicts]
            if not undecided:
                break
            # No row is written where the others lie.
            in_place = [key for key in undecided if not is_astray(key)]
            before = self._rows.rows_of(in_place)
            # The time is read after the rows.
            entry, watermark = self._watermarks.passed(self._rows.now())
            self._catch_up(watermark.next_offsets)
            shown = self._images.shown(undecided)
            after = self._rows.rows_of(in_place)
            held_back = (
                {key for key in in_place if self._rows.name(key) in entry.held_back} if entry.held_back else set()
            )
            verdicts |= _judged(judge, before, shown, after, held_back)
        return {key: verdicts.get(key, Outcome.UNDECIDED) for key in keys}

    def _catch_up(self, end_offsets: Sequence[int]) -> None:
        while self._reader.is_behind(end_offsets):
            self._images.renew(_images_of(self._reader.read(PIECE_RECORDS), len(end_offsets)))

    def _note(self, verdicts: Verdicts) -> None:
        kinds = {key: verdict for key, verdict in verdicts.items() if isinstance(verdict, Kind)}
        self._images.mark(kinds)
        self._images.forget(key for key in verdicts if key not in kinds)
        self.tally.found.update(kinds.values())
        self.tally.left += len(kinds)
        outcomes = Counter(verdicts.values())
        self.tally.equal += outcomes[Outcome.EQUAL]
        self._note_apart(outcomes)

    def _note_repaired(self, verdicts: Verdicts) -> None:
        outcomes = Counter(verdicts.values())
        self._images.repaired(key for key, verdict in verdicts.items() if verdict is Outcome.EQUAL)
        self.tally.repaired += outcomes[Outcome.EQUAL]
        self.tally.left -= sum(outcomes[outcome] for outcome in Outcome)
        self._note_apart(outcomes)

    def _note_apart(self, outcomes: Mapping[Verdict, int]) -> None:
        self.tally.undecided += outcomes.get(Outcome.UNDECIDED, 0)
        self.tally.held_back += outcomes.get(Outcome.HELD_BACK, 0)


def _judged(
    judge: Judge,
    before: Mapping[bytes, Digest | None],
    shown: Mapping[bytes, Digest | None],
    after: Mapping[bytes, Digest | None],
    held_back: set[bytes],
) -> Verdicts:
    """Return what a look shows of the keys that it decides. Pure but for the judge's memory."""
    verdicts: Verdicts = {}
    for key, image in shown.items():
        if key in before and key in after:
            verdict = judge.verdict(key, before[key], image, after[key])
        else:
            # No row can have this key, now or later, or be written where the record lies.
            verdict = Outcome.EQUAL if image is None else Kind.FOREIGN
        if verdict is not Outcome.EQUAL and key in held_back:
            verdict = Outcome.HELD_BACK
        if verdict is not None:
            verdicts[key] = verdict
    return verdicts


def _images_of(records: Sequence[Message], partitions: int) -> dict[bytes, Digest | None]:
    """Return the newest image of each key in the records, apart for those that lie in another partition than theirs."""
    images: dict[bytes, Digest | None] = {}
    for record in records:
        key, value, partition = record.key(), record.value(), record.partition()
        if isinstance(key, bytes) and partition is not None:
            images[image_key(key, partition, partitions)] = digest(value) if isinstance(value, bytes) else None
    return images
