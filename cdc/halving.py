"""Which few of many spoil a question that is asked of all of them together. Pure but for the asking."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")


def halved(
    items: Sequence[ItemT], ask: Callable[[Sequence[ItemT]], AnswerT | None]
) -> Iterator[tuple[Sequence[ItemT], AnswerT | None]]:
    """Yield items with what is answered of them: of all, or of halves of halves where the answer is None.

    None comes with items that there is no answer of, one at a time.
    """
    if not items:
        return
    answer = ask(items)
    if answer is not None or len(items) == 1:
        yield items, answer
        return
    half = len(items) // 2
    yield from halved(items[:half], ask)
    yield from halved(items[half:], ask)
