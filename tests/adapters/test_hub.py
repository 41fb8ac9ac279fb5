"""``hf:USER/NAME`` against a stand-in for the Hub that runs here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer, hub_server

from samadapt.adapters import hub
from samadapt.adapters.hub import adapter_path, parse_name
from samadapt.adapters.injection import inject
from samadapt.adapters.record import AdapterRecord, digest_of
from samadapt.adapters.store import save_adapter
from samadapt.cli import main
from samadapt.data.intensity import make_intensity
from samadapt.errors import AdapterError, ConfigError, DownloadError
from samadapt.inference.segmenter import load_adapter
from samadapt.methods import METHODS
from samadapt.prompts.policy import PromptPolicy
from samadapt.sam.weights.loading import base_hash, load_sam

BOX = [[4, 6, 30, 40]]
PICTURE = np.random.default_rng(0).integers(0, 255, (48, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """An adapter on the random model ``tiny``, which needs no file of weights."""
    folder = tmp_path_factory.mktemp("hub") / "adapter"
    sam = load_sam("tiny")
    record = AdapterRecord(
        base="tiny", base_sha256=base_hash(sam), image_size=sam.image_size, classes=["cell"],
        preprocessing=asdict(sam.preprocessing), intensity=make_intensity("rgb").to_dict(),
        prompt=PromptPolicy("box").to_dict(),
    )  # fmt: skip
    injection = inject(sam, METHODS["lora"]())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in injection.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    save_adapter(folder, sam, injection, record)
    return folder


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[HubServer]:
    """The stand-in, with an empty cache on our side and no token."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub._fetched.cache_clear()
    with hub_server() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running
    hub._fetched.cache_clear()


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_it_segments_as_the_directory_does(server, directory):
    server.publish("someone/cells", content(directory) | {"notes.txt": b"not fetched"})
    wanted = load_adapter(directory).segment(PICTURE, boxes=BOX)
    found = load_adapter("hf:someone/cells")
    np.testing.assert_array_equal(found.segment(PICTURE, boxes=BOX), wanted)
    found.add(directory, "second")
    assert wanted.any()
    assert not any(path.endswith("notes.txt") for _, path, _ in server.asked)


def test_a_revision_and_then_without_a_network(server, directory):
    old = server.publish("someone/cells", content(directory))
    new = server.publish("someone/cells", content(directory) | {"README.md": b"newer"})
    assert adapter_path(f"hf:someone/cells@{old}").name == old
    assert adapter_path("hf:someone/cells").name == new
    server.address = ""
    hub._fetched.cache_clear()
    for repository in list(server.files):
        del server.files[repository]
    # The repository is gone, and what was fetched is still found.
    assert adapter_path("hf:someone/cells").name == new
    assert adapter_path(f"hf:someone/cells@{old}").name == old


def test_nobody_answers(server, directory, monkeypatch):
    server.publish("someone/cells", content(directory))
    adapter_path("hf:someone/cells")
    hub._fetched.cache_clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert (adapter_path("hf:someone/cells") / "samadapt.json").is_file()
    with pytest.raises(DownloadError, match="hf:someone/other: the Hub cannot be reached"):
        adapter_path("hf:someone/other")


def test_a_private_repository_wants_the_usual_token(server, directory, monkeypatch):
    server.publish("someone/secret", content(directory))
    server.private.add("someone/secret")
    with pytest.raises(AdapterError, match=r"or it is private.*`hf auth login` or set HF_TOKEN"):
        adapter_path("hf:someone/secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert adapter_path("hf:someone/secret").is_dir()


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ({}, "hf:nobody/nothing", "the Hub has no repository nobody/nothing"),
        ({}, "hf:someone/cells@v9", "someone/cells has no revision 'v9'"),
        ({"samadapt.json": None}, "hf:someone/cells", r"the repository has no samadapt\.json"),
        ({"adapter_model.safetensors": None}, "hf:someone/cells", "and no adapter_model"),
        ({"adapter_model.safetensors": b"other"}, "hf:someone/cells", "changed or damaged"),
        ({"samadapt.json": b"{"}, "hf:someone/cells", "expected JSON"),
    ],
)
def test_each_failure_has_one_message(server, directory, change, name, message):
    files = {k: v for k, v in (content(directory) | change).items() if v is not None}
    server.publish("someone/cells", files)
    with pytest.raises(AdapterError, match=message):
        adapter_path(name)


def test_an_adapter_without_digests_is_refused(server, directory):
    files = content(directory)
    values = json.loads(files["samadapt.json"])
    values["weights_sha256"] = ""
    values["record_sha256"] = digest_of(values)
    server.publish("someone/old", files | {"samadapt.json": json.dumps(values).encode()})
    with pytest.raises(AdapterError, match="has no digest of the weights"):
        adapter_path("hf:someone/old")


def test_gated(server, directory):
    server.publish("someone/gated", content(directory))
    server.gated.add("someone/gated")
    with pytest.raises(AdapterError, match="access must be granted first"):
        adapter_path("hf:someone/gated")


@pytest.mark.parametrize(
    "name", ["hf:", "hf:cells", "hf:a/b/c", "hf:a/b@", "hf:a/b@x y", "hf:a/../b"]
)
def test_a_wrong_name(name):
    with pytest.raises(ConfigError, match="expected hf:USER/NAME or hf:USER/NAME@REVISION"):
        adapter_path(name)


def test_a_name():
    assert parse_name("hf:a-b/c.d@refs/pr/1") == ("a-b/c.d", "refs/pr/1")


def test_what_was_pushed_is_loaded_by_name(server, directory, tmp_path, monkeypatch, capsys):
    """``export to=adapter push=`` and then ``predict adapter=hf:…``, as two people do."""
    from huggingface_hub import HfApi, constants
    from PIL import Image

    start = HfApi.__init__

    def made(self, endpoint=None, token=None, **kwargs):
        start(self, endpoint=endpoint or server.address, token="hf_secret", **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "__init__", made)
        patch.setattr(constants, "ENDPOINT", server.address)
        arguments = [f"adapter={directory}", "to=adapter", f"output={tmp_path / 'copy'}"]
        assert main(["export", *arguments, "push=someone/cells", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["compared"] == "the files are copies, and their digests agree"
    sent = server.files["someone/cells"]["main"]
    assert sent == content(directory)
    Image.fromarray(PICTURE).save(tmp_path / "cell.png")
    keys = [f"input={tmp_path / 'cell.png'}", f"output={tmp_path / 'mask.png'}", f"boxes={BOX}"]
    assert main(["predict", "adapter=hf:someone/cells", *keys, "device=cpu"]) == 0
    found = np.asarray(Image.open(tmp_path / "mask.png"))
    np.testing.assert_array_equal(found, load_adapter(directory).segment(PICTURE, boxes=BOX))
    assert main(["predict", "adapter=hf:someone/gone", *keys]) == 2
    said = capsys.readouterr().err
    assert "hf:someone/gone: the Hub has no repository someone/gone" in said
    assert "Traceback" not in said
