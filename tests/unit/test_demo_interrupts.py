"""What Ctrl-C does to the demo."""

import signal

import pytest

from compose.demo.interrupts import Phase, handled_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_starting_a_signal_breaks_off_once_and_lets_the_cleaning_finish(number: signal.Signals) -> None:
    with handled_signals() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(number)
        assert interrupts.phase is Phase.CLEANING


def test_while_running_the_first_signal_asks_to_stop_and_the_second_breaks_off() -> None:
    with handled_signals() as interrupts:
        interrupts.phase = Phase.RUNNING
        signal.raise_signal(signal.SIGINT)
        assert interrupts.stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_earlier_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with handled_signals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
