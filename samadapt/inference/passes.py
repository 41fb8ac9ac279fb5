"""The passes of a prediction: each member of an ensemble sees each mirrored copy of an image.

The members share one base model. What lies before the first block that any of them changed is the
same for all, so it runs once for each copy of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samadapt.inference.embedding_cache import EmbeddingCache
from samadapt.sam.embed import embed, embed_features, embed_prefix, frame_of
from samadapt.sam.mirror import Mirror, mirrored

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.inference.bundle import AdapterBundle
    from samadapt.sam.types import Frame
    from samadapt.system.arrays import Array


@dataclass(frozen=True)
class EmbeddedPass:
    """Some images as one member of an ensemble sees them, in one mirrored copy.

    Attributes:
        member: the adapter.
        mirror: the axes that are reversed.
        embeddings: (b, ...) on the device of the model, as ``embed`` returns them.
        frames: where each image lies in the model's square.
    """

    member: AdapterBundle
    mirror: Mirror
    embeddings: Tensor
    frames: list[Frame]


def embed_passes(
    members: Sequence[AdapterBundle],
    mirrors: Sequence[Mirror],
    images: Sequence[Array],
    kept: EmbeddingCache | None,
    stack: int = 1,
) -> Iterator[EmbeddedPass]:
    """Embed images once for each member and mirrored copy.

    Args:
        members: the adapters, on one base.
        mirrors: the axes that are reversed in each copy.
        images: (h, w, 3) uint8; whole stacks, one after the other.
        kept: where embeddings are looked up and kept; None: nowhere.
        stack: number of images that the encoder sees together.

    Yields:
        The passes, copy by copy.
    """
    for mirror in mirrors:
        copies = [mirrored(image, mirror) for image in images]
        if kept is not None:
            for member in members:
                found = kept(member.sam, member.encoder, copies, stack)
                yield EmbeddedPass(member, mirror, *found)
            continue
        shared = min(member.first_trainable_block for member in members)
        # A dense head decides what is kept of the frozen blocks, so heads must be of one kind.
        heads_differ = any(one.record.head != members[0].record.head for one in members)
        if len(members) == 1 or shared < 0 or heads_differ:
            for member in members:
                yield EmbeddedPass(member, mirror, *embed(member.sam, copies))
            continue
        sam = members[0].sam
        features = embed_prefix(sam, copies, shared)
        frames = [frame_of(sam, image) for image in copies]
        for member in members:
            embeddings = embed_features(member.sam, features, shared)
            yield EmbeddedPass(member, mirror, embeddings, frames)
