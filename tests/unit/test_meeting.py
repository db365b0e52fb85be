"""When readers may be led from one version of a view to another."""

from datetime import UTC, datetime, timedelta

import pytest

from projector.meeting import Standing, apart

T = datetime(2026, 1, 31, tzinfo=UTC)
OLD = Standing({("p.public.a", 0): 5, ("p.public.a", 1): 7, ("p.public.gone", 0): 3, ("p.cursor", 0): 40}, T)


@pytest.mark.parametrize(
    ("new", "stuck", "reason"),
    [
        ({("p.public.a", 0): 5, ("p.public.a", 1): 7, ("p.public.more", 0): 9, ("p.cursor", 0): 2}, False, None),
        ({("p.public.a", 0): 5, ("p.public.a", 1): 6}, False, "topic p.public.a partition 1 is applied up to 7"),
        ({("p.public.a", 0): 6, ("p.public.a", 1): 7}, False, "topic p.public.a partition 0 is applied up to 5"),
        ({("p.public.a", 0): 1}, True, None),
    ],
)
def test_what_both_read_has_to_stand_at_one_offset(
    new: dict[tuple[str, int], int], stuck: bool, reason: str | None
) -> None:
    found = apart(OLD, Standing(new, T), cursor_topic="p.cursor", stuck=stuck)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize("stuck", [False, True])
def test_as_of_goes_never_back(stuck: bool) -> None:
    def reason(before: datetime | None, after: datetime | None) -> str | None:
        return apart(Standing({}, before), Standing({}, after), cursor_topic="p.cursor", stuck=stuck)

    assert reason(None, None) is None
    assert reason(T, T + timedelta(seconds=1)) is None
    assert "the new one's is older" in str(reason(T, T - timedelta(seconds=1)))
    assert "the new one's is not known yet" in str(reason(T, None))
