"""``accept``: masks that people corrected come back, as new versions, with what was changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samadapt.adapters.record import sha256_of
from samadapt.data.formats.base import reader_for, write_prediction
from samadapt.data.formats.shared.pictures import load_mask
from samadapt.data.formats.shared.volume_layout import channel_beside
from samadapt.data.types import Case, Volume
from samadapt.engine.changes import measure_changes
from samadapt.engine.corrections import Corrected, Format, read_corrected
from samadapt.engine.proposals import as_small_as_possible
from samadapt.engine.workspace import AcceptedMask, ProposedMask, Workspace, now
from samadapt.errors import DataError, UserError
from samadapt.system.arrays import Array


def accept(
    workspace: Workspace,
    source: Path,
    kind: Format,
    *,
    names: Sequence[str] | None,
    values: dict[str, int] | None,
    by: str,
    held_out: bool,
) -> list[dict[str, Any]]:
    """Read corrected masks and keep each as a new version.

    Args:
        workspace: the workspace.
        source: the file or folder of the corrected masks.
        kind: their format.
        names: only these images; None: all that are there.
        values: value of each class in mask files; None: 1, 2, ... in order.
        by: who corrected them.
        held_out: they measure, and never train.

    Returns:
        One row an image: ``"image"``, ``"version"``, ``"file"`` and ``"changes"`` (None without a
        proposal); ``"same": True`` if the last version is this mask already; or ``"error"``.

    Raises:
        DataError: nothing can be read.
    """
    rows = []
    for one in read_corrected(workspace, source, kind, names=names, values=values):
        if not isinstance(one, Corrected):
            rows.append({"image": one[0], "error": str(one[1])})
            continue
        try:
            check_side(workspace, one.image, held_out=held_out)
            rows.append(_keep(workspace, one, by, held_out=held_out))
        except UserError as error:
            rows.append({"image": one.image, "error": str(error)})
    return rows


def check_side(workspace: Workspace, name: str, *, held_out: bool) -> None:
    """Refuse a held-out image that shall train, or one that has trained and shall be held out.

    An image with the same voxels counts as the same image, whatever its name is.

    Raises:
        DataError: naming the image.
    """
    digest = workspace.index.images[name].digest
    for other, accepted in workspace.current(held_out=not held_out).items():
        if other != name and workspace.index.images[other].digest != digest:
            continue
        known = f"{name}" if other == name else f"{name} (the same image as {other})"
        if not held_out:
            raise DataError(
                f"{known} is held out: it measures the rounds and never trains. Accept a new "
                f"version of it with held_out=true (version {accepted.version} is there)"
            )
        raise DataError(
            f"{known} is accepted for training, so it cannot be held out: its scores would not be "
            "those of unseen images. Hold out other images"
        )


def _keep(workspace: Workspace, one: Corrected, by: str, *, held_out: bool) -> dict[str, Any]:
    """Write a version of a mask, record it, and return its row."""
    before = [known for known in workspace.index.accepted if known.image == one.image]
    version = len(before) + 1
    file = f"accepted/{one.image}/{version:04d}{workspace.ending(one.image)}"
    path = workspace.root / file
    if path.exists():
        raise DataError(f"{path}: this version is there, and the index does not know it; move it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_prediction(as_small_as_possible(one.mask), one.volume, path)
    digest = sha256_of(path)
    if before and before[-1].sha256 == digest:
        path.unlink()
        return {"image": one.image, "version": before[-1].version, "same": True}
    proposal = workspace.proposed(one.image)
    changes = None
    if proposal is not None:
        old = read_mask(workspace, proposal, one.volume)
        changes = measure_changes(
            old, one.mask, len(workspace.index.classes), objects=workspace.index.objects
        ).to_dict()
    workspace.index.accepted.append(
        AcceptedMask(
            image=one.image,
            version=version,
            file=file,
            sha256=digest,
            time=now(),
            origin=str(one.file),
            by=by,
            held_out=held_out,
            call=None if proposal is None else proposal.call,
            maker=None if proposal is None else workspace.maker_of(proposal),
            changes=changes,
        )
    )
    return {"image": one.image, "version": version, "file": str(path), "changes": changes}


def read_mask(workspace: Workspace, known: ProposedMask | AcceptedMask, volume: Volume) -> Array:
    """Return a mask of the workspace (h, w, d) in the frame of its image.

    Raises:
        DataError: the file is gone, or is not the one that was written.
    """
    path = workspace.root / known.file
    if not path.is_file() or sha256_of(path) != known.sha256:
        raise DataError(
            f"{path}: this mask was changed or removed after it was written; restore it. Masks to "
            "correct are in the folder correct/"
        )
    if workspace.index.reader == "folder":
        return load_mask(path, "ignore").values[:, :, None]
    image = workspace.image_path(known.image)
    case = Case(
        known.image, image, path, channel=channel_beside(image.parent, workspace.how.channel)
    )
    labels = reader_for(image, workspace.how).read(case).labels
    if labels is None or labels.shape != volume.shape:
        raise DataError(f"{path}: expected a mask of the shape {volume.shape}")
    return labels
