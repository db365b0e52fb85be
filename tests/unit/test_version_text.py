"""How a rebuild's progress is said."""

import pytest

from projector.filling import Progress
from projector.rebuild import Waiting
from projector.version_text import NOT_KEPT, progress_words


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            Progress(records=1_200_000, records_per_second=20_000.4, lag_records=90_000, seconds_left=200.0),
            "1,200,000 rows, 20,000 rows/s, 90,000 offsets to go, 3 min 20 s left",
        ),
        (
            Progress(records=0, records_per_second=0.0, lag_records=5, seconds_left=None),
            "0 rows, 0 rows/s, 5 offsets to go",
        ),
        (Waiting("the new one is behind", is_kept=True), "waiting: the new one is behind"),
        (Waiting("the new one is behind", is_kept=False), f"waiting: the new one is behind; {NOT_KEPT}"),
    ],
)
def test_a_step_is_said_with_what_is_left_and_what_is_waited_for(step: Progress | Waiting, words: str) -> None:
    assert progress_words(step) == words
