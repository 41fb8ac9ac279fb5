"""Servers over a model that knows the truth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from served import PLACE, TOKEN, oracle_model
from starlette.testclient import TestClient

from samadapt.serving.app import make_app
from samadapt.serving.limits import ServingLimits
from samadapt.serving.served_models import ServedModel, ServedModels
from samadapt.serving.server import Listener, make_server
from samadapt.serving.server_state import ServerState


@pytest.fixture
def make_state() -> Callable[..., ServerState]:
    """``make_state(*models, **options)``: what is served; limits are named as they are."""

    def make(*models: ServedModel, limits: ServingLimits | None = None, **options: Any):
        served = ServedModels(models or (oracle_model(),))
        return ServerState(served, limits or ServingLimits(), **options)

    return make


@pytest.fixture
def client_of(make_state) -> Iterator[Callable[..., TestClient]]:
    """``client_of(state)``: a client with the token, of a server that runs until the test ends."""
    with ExitStack() as stack:

        def make(state: ServerState | None = None, **headers: str) -> TestClient:
            app = make_app(state or make_state(), TOKEN, {"127.0.0.1", "localhost"})
            client = TestClient(app, base_url=PLACE, raise_server_exceptions=False)
            client.headers["Authorization"] = f"Bearer {TOKEN}"
            client.headers.update(headers)
            return stack.enter_context(client)

        yield make


@pytest.fixture
def listening(make_state) -> Iterator[Callable[..., str]]:
    """``listening(state)``: the address of a server at a port of its own, with ``TOKEN``."""
    ends: list[Callable[[], None]] = []

    def start(state: ServerState | None = None) -> str:
        listener = Listener(token=TOKEN)
        opened = listener.listen()
        server = make_server(state or make_state(), listener)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
        thread.start()

        def end() -> None:
            server.should_exit = True
            thread.join()
            opened.close()

        ends.append(end)
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        return listener.url(opened.getsockname()[1])

    yield start
    for end in ends:
        end()
