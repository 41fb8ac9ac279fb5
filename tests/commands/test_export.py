"""``samadapt export`` through the command line's own entry, and the upload to a stand-in Hub."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from samadapt.adapters.injection import inject
from samadapt.adapters.store import AdapterRecord, save_adapter
from samadapt.cli import main
from samadapt.methods import METHODS
from samadapt.sam.weights.loading import base_hash, load_sam


@pytest.fixture
def adapter(tmp_path):
    """``adapter(method)``: one on the random model ``tiny``, which needs no file of weights."""

    def make(method="lora"):
        sam = load_sam("tiny")
        record = AdapterRecord(
            base="tiny",
            base_sha256=base_hash(sam),
            image_size=sam.image_size,
            preprocessing=asdict(sam.preprocessing),
        )
        save_adapter(tmp_path / method, sam, inject(sam, METHODS[method]()), record)
        return tmp_path / method

    return make


def test_it_prints_the_files_and_the_largest_difference(adapter, tmp_path, capsys):
    directory = adapter()
    arguments = [f"adapter={directory}", "to=sam"]
    assert main(["export", *arguments, f"output={tmp_path / 'out'}"]) == 0
    shown = capsys.readouterr().out
    assert "model.pth" in shown
    assert "largest difference" in shown
    assert main(["export", *arguments, f"output={tmp_path / 'again'}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["largest_logit_difference"] < 1e-4
    assert set(result["files"]) == {"README.md", "model.pth", "model.safetensors"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "onyx"}, "did you mean 'onnx'? (command line)\n"),
        ({"naming": "transformers"}, "naming is no option of to=sam"),
        ({"push": "me"}, "push must be USER/NAME"),
        ({"adapter": "nowhere"}, "nowhere: expected an adapter directory"),
        ({"checkpoint": "gone.pth"}, "no such checkpoint: gone.pth"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    adapter, tmp_path, monkeypatch, capsys, changes, message
):
    monkeypatch.chdir(tmp_path)
    given = {"adapter": adapter(), "to": "sam", "output": "out"} | changes
    assert main(["export", *(f"{key}={value}" for key, value in given.items())]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the Hugging Face Hub that records what was asked of it."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.path, self.headers.get("Authorization"), body))
            self.answer(body)

        def answer(self, body):
            address = f"http://127.0.0.1:{self.server.server_port}"
            if self.path == "/api/repos/create":
                return self.say({"url": f"{address}/someone/thing", "name": "someone/thing"})
            if "/preupload/" in self.path:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                return self.say({"files": files})
            if "/commit/" in self.path:
                return self.say({"commitUrl": f"{address}/c/1", "commitOid": "1", "hookOutput": ""})
            return self.say({})

        def do_GET(self):
            self.say({"id": "someone/thing", "siblings": []})

        def say(self, values):
            data = json.dumps(values).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    from huggingface_hub import HfApi, constants

    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_HOME", f"{address}/")
    start = HfApi.__init__

    def made(self, endpoint=None, token=None, **kwargs):
        start(self, endpoint=address, token="hf_of_nobody", **kwargs)

    monkeypatch.setattr(HfApi, "__init__", made)
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_push_uploads_the_folder_with_its_card(adapter, tmp_path, hub, capsys):
    arguments = [f"adapter={adapter()}", "to=peft", f"output={tmp_path / 'out'}"]
    assert main(["export", *arguments, "push=someone/thing", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["pushed"].endswith("/someone/thing")
    (created,) = (body for path, _, body in hub if path == "/api/repos/create")
    assert json.loads(created)["name"] == "thing"
    (commit,) = (body for path, _, body in hub if "/commit/" in path)
    sent = {json.loads(line)["value"].get("path") for line in commit.splitlines()} - {None}
    assert sent == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {token for _, token, _ in hub} == {"Bearer hf_of_nobody"}
