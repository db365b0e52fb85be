"""What the entry points of all parts share, before anything that takes time is imported."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_interrupt() -> Iterator[None]:
    """Have Ctrl-C end the process without a word: a traceback out of half a second of imports tells nobody anything.

    Where it is ignored, in a script's background for instance, it stays so.
    """
    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
