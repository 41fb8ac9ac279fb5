"""Where a server listens, and under which names it answers."""

from __future__ import annotations

import socket

from samadapt.serving.server import Listener, new_token


def test_a_listener_answers_to_its_own_names_alone():
    assert Listener().names == {"127.0.0.1", "localhost", "::1"}
    assert Listener("192.0.2.7", others=("annotate.lab",)).names == {"192.0.2.7", "annotate.lab"}
    every = Listener("0.0.0.0")
    assert every.is_any
    assert every.names == {"0.0.0.0", "127.0.0.1", "localhost", "::1", socket.gethostname()}
    assert not Listener("localhost").is_any


def test_addresses_are_written_as_browsers_take_them():
    assert Listener("::1").url(80) == "http://[::1]:80"
    assert Listener().url(1527) == "http://127.0.0.1:1527"
    assert Listener("0.0.0.0").url(1) == f"http://{socket.gethostname()}:1"


def test_tokens_differ_and_are_long():
    assert len({new_token() for _ in range(20)}) == 20
    assert len(new_token()) >= 32
