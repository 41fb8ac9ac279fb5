"""How much a server accepts, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass

MB = 1 << 20


@dataclass(frozen=True)
class ServingLimits:
    """The limits of a server.

    Attributes:
        sessions: open at the same time; each holds one image.
        idle_seconds: without an action of its user after which a session ends.
        liveness_seconds: without any request, heartbeats included, after which a session ends. It
            holds for clients that send heartbeats.
        upload_bytes: of the body of a request.
        json_bytes: of a body of JSON.
        voxels: of an image, over all channels.
        chunk_seconds: that a client may take for each part of a body.
        objects: of an image.
        batch: pictures in one request.
    """

    sessions: int = 8
    idle_seconds: float = 600.0
    liveness_seconds: float = 60.0
    upload_bytes: int = 512 * MB
    json_bytes: int = 64 * MB
    voxels: int = 128 * MB
    chunk_seconds: float = 30.0
    objects: int = 255
    batch: int = 64
