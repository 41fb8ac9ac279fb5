"""Arrays on the wire, against the official client's own functions."""

from __future__ import annotations

import blosc2
import numpy as np
import pytest

from samadapt.serving import packed_arrays
from samadapt.serving.packed_arrays import DTYPES, pack, unpack
from samadapt.serving.refused import RefusedError

official = pytest.importorskip("nnInteractive.inference.remote.serialization")


@pytest.mark.parametrize("name", DTYPES)
def test_arrays_go_both_ways_as_the_official_client_packs_them(name):
    values = np.random.default_rng(0).integers(0, 2, (2, 3, 5, 7)).astype(name)
    for codec in (blosc2.Codec.ZSTD, blosc2.Codec.LZ4):
        found = unpack(official.pack_array(values, codec=codec, nthreads=1), values.size)
        assert found.dtype == values.dtype
        assert np.array_equal(found, values)
    assert np.array_equal(official.unpack_array(pack(values)), values)


def test_large_arrays_are_cut_into_chunks(monkeypatch):
    values = np.arange(1000, dtype=np.int16).reshape(10, 100)
    monkeypatch.setattr(packed_arrays, "CHUNK", 256)
    monkeypatch.setattr(official, "_CHUNK_SIZE", 512)
    assert np.array_equal(official.unpack_array(pack(values)), values)
    assert np.array_equal(unpack(official.pack_array(values, nthreads=1), 1000), values)


def test_parts_of_arrays_are_packed_as_they_are_seen():
    values = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)[::-1, 1:3, ::2]
    assert np.array_equal(official.unpack_array(pack(values)), values)


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_arrays_that_are_cut_off_are_refused(cut):
    whole = pack(np.arange(20, dtype=np.uint8))
    with pytest.raises(RefusedError) as caught:
        unpack(whole[:cut], 20)
    assert caught.value.status == 400
