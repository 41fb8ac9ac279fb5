"""Signals ask for an end; the second one is not to be ignored."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading

import pytest

from samadapt.system import interrupt
from samadapt.system.interrupt import InterruptedRunError, StopAtOnce, StopRequest, exit_code

pytestmark = pytest.mark.usefixtures("heard_signals")

ALL = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]


@pytest.mark.parametrize("number", ALL)
def test_the_first_signal_asks_and_the_second_interrupts(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        assert stop.number == number
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(number)
    assert exit_code(caught.value) == 128 + number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [n for n in ALL if n not in (signal.SIGINT, signal.SIGTERM)])
@pytest.mark.parametrize("taking", [StopRequest, StopAtOnce])
def test_what_nohup_ignores_stays_ignored(number, taking):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with taking():
            assert signal.getsignal(number) == signal.SIG_IGN
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", ALL)
def test_outside_training_a_signal_ends_the_program_at_once(number, monkeypatch):
    before, ended = signal.getsignal(number), []
    monkeypatch.setattr(os, "_exit", ended.append)
    with StopAtOnce():
        with pytest.raises(KeyboardInterrupt, match=signal.Signals(number).name) as caught:
            signal.raise_signal(number)
        assert exit_code(caught.value) == 128 + number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert ended == [128 + number]
    assert signal.getsignal(number) is before


def test_a_platform_without_some_signals(monkeypatch):
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
        monkeypatch.delattr(signal, name, raising=False)
    spec = importlib.util.spec_from_file_location("another", interrupt.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.SIGNALS == (signal.SIGINT, signal.SIGTERM)
    with module.StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.number == signal.SIGTERM


def test_ctrl_c_of_python_itself_counts_as_sigint():
    assert exit_code(KeyboardInterrupt()) == 130


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
    assert InterruptedRunError(tmp_path, 17, signal.SIGTERM).exit_code == 143
    assert (
        f"stopped after step 17, all saved; continue with: samadapt finetune resume={tmp_path}"
        in (str(error))
    )
