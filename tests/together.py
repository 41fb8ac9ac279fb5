"""Start ``samadapt`` in several processes, as a launcher does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

SECONDS = 240


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Together:
    """Two processes of ``samadapt`` as a launcher starts them; ``command`` may differ by rank."""

    program = ("-m", "samadapt")

    def __init__(self, *commands: list[str], size: int = 2, **environment: str) -> None:
        port = free_port()
        self.started = [
            subprocess.Popen(
                [sys.executable, *self.program, *command],
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "WORLD_SIZE": str(size),
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    **environment,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
            for rank, command in enumerate(commands)
        ]

    def end(self) -> list[tuple[int, str, str]]:
        """Exit code, stdout and stderr of each."""
        found = [(*one.communicate(timeout=SECONDS), one.returncode) for one in self.started]
        return [(code, out, error) for out, error, code in found]


def shared(*command: str) -> dict:
    """Run a command in two processes; the result that the first one prints."""
    (first, out, errors), (other, nothing, said) = Together(*[[*command, "--json"]] * 2).end()
    assert (first, other) == (0, 0), errors + said
    assert nothing == ""
    assert "features" not in said  # the first process speaks for all
    return json.loads(out)


def alone(*command: str) -> dict:
    (code, out, errors), *_ = Together([*command, "--json"], size=1).end()
    assert code == 0, errors
    return json.loads(out)
