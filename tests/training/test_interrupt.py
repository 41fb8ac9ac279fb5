"""Signals ask for an end; the second one is not to be ignored."""

from __future__ import annotations

import signal
import threading

import pytest

from samadapt.training.interrupt import InterruptedRunError, StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_the_message_says_how_to_go_on(tmp_path):
    error = InterruptedRunError(tmp_path, 17)
    assert error.exit_code == 130
    assert (
        f"stopped after step 17, all saved; continue with: samadapt finetune resume={tmp_path}"
        in (str(error))
    )
