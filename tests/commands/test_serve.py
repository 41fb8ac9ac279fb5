"""``samadapt serve``: what it refuses, what it says, and how it ends."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from samadapt import SamPredictor
from samadapt.cli import main
from samadapt.commands import serve
from samadapt.commands.serve import open_state, run
from samadapt.config.compose import parse_settings
from samadapt.errors import AdapterError, ConfigError
from samadapt.serving.app import make_app
from samadapt.serving.uploads import image_of_file


def asked(*arguments: str) -> serve.ServeArguments:
    return parse_settings(serve.ServeArguments, serve._joined(arguments))


def test_adapters_are_named_once_more_or_as_a_list():
    for given in (("adapter=a", "port=0", "adapter=b"), ("adapter=[a,b]", "port=0")):
        assert asked(*given).adapter == ["a", "b"]
    assert asked("adapter=a").adapter == "a"


def test_mistakes_are_named_before_anything_is_served(tmp_path):
    with pytest.raises(ConfigError, match="expected adapter=DIR; got none"):
        run(["port=0"])
    with pytest.raises(ConfigError, match="token: expected 16"):
        run(["adapter=a", "token=short"])
    with pytest.raises(ConfigError, match="label_studio: expected an address"):
        run(["adapter=a", "label_studio=here", "port=0"])
    with pytest.raises(ConfigError, match=r"host=192\.0\.2\.1 port=0: cannot listen there"):
        run(["adapter=a", "host=192.0.2.1", "port=0"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port={port}: cannot listen there"):
            run(["adapter=a", f"port={port}"])
    with pytest.raises(AdapterError):
        run([f"adapter={tmp_path}", "port=0"])


def test_adapters_share_one_base_which_is_served_beside_them(adapter_at, tmp_path):
    places = [adapter_at(tmp_path / name) for name in ("one", "two")]
    again = adapter_at(tmp_path / "other" / "one")
    state = open_state(asked(*(f"adapter={place}" for place in (*places, again))))
    models = {model.name: model for model in state.models}
    assert list(models) == ["one", "two", "one-2", "base"]
    tensors = [model.sam.state_dict()["image_encoder.pos_embed"] for model in models.values()]
    assert len({tensor.data_ptr() for tensor in tensors}) == 1
    assert models["base"].is_base
    assert models["one"].notes == ["it was trained with prompts=box and is best with these"]


def predicted_iou(model, picture):
    """Return what a model alone expects of its mask for a box."""
    with Image.open(picture) as opened:
        shown = model.bundle.intensity(np.asarray(opened))
    predictor = SamPredictor(model.sam)
    predictor.set_image(shown)
    return predictor.predict(box=np.array([3, 3, 20, 15]), multimask_output=False)[1][0]


@pytest.mark.parametrize("base", ["tiny", "tiny_t", "tiny_h"])
def test_adapters_of_several_image_sizes_answer_side_by_side(adapter_at, pictures, tmp_path, base):
    sizes = {"small": 64, "also_small": 64, "large": 96}
    places = [
        adapter_at(tmp_path / name, image_size=size, method="none", base=base)
        for name, size in sizes.items()
    ]
    state = open_state(asked(*(f"adapter={place}" for place in places)))
    models = {model.name: model for model in state.models}
    assert {name: model.sam.image_size for name, model in models.items()} == {**sizes, "base": 64}
    app = make_app(state, "a-token-of-the-tests", {"localhost"})
    with TestClient(app, base_url="http://localhost") as client:
        client.headers["Authorization"] = "Bearer a-token-of-the-tests"
        content = (pictures / "a.png").read_bytes()
        image = client.post("/api/images", params={"name": "a.png"}, content=content)
        objects = f"/api/images/{image.json()['image']}/objects"
        for name, model in models.items():
            made = client.post(objects, json={"adapter": name}).json()["object"]
            prompt = {"kind": "box", "box": [3, 3, 20, 15]}
            answer = client.post(f"{objects}/{made}/prompts", json=prompt).json()
            assert answer["predicted_iou"] == pytest.approx(
                predicted_iou(model, pictures / "a.png")
            )


def test_adapters_of_several_bases_answer_side_by_side(adapter_at, tmp_path):
    places = [adapter_at(tmp_path / base, base=base) for base in ("tiny", "tiny_h")]
    named = [f"adapter={place}" for place in places]
    models = [model.sam.build.name for model in open_state(asked(*named)).models]
    assert models == ["tiny", "tiny_h", "tiny"]
    with pytest.raises(AdapterError, match=r"base\.pth: is the file of one base model, and these"):
        open_state(asked(*named, "checkpoint=base.pth"))


def test_slices_along_different_axes_have_embeddings_of_their_own(adapter_at, tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 20, 20))
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii")
    places = [
        adapter_at(tmp_path / axis, intensity="mri", method="none", axis=axis)
        for axis in ("axial", "coronal")
    ]
    state = open_state(asked(*(f"adapter={place}" for place in places)))
    image = image_of_file(
        (tmp_path / "scan.nii").read_bytes(), "scan.nii", state.models, state.limits
    )
    axial, coronal = (image.seen_by(state.models.get(name)) for name in ("axial", "coronal"))
    first, other = axial.embed([5])[0], coronal.embed([5])[0]
    assert not torch.equal(first, other)
    assert axial.encoded == coronal.encoded == 1


@pytest.fixture
def client(adapter_at, tmp_path):
    """A client of a server of two adapters, and of the base."""
    places = adapter_at(tmp_path / "box", classes=["cell"]), adapter_at(tmp_path / "auto", "point")
    state = open_state(
        asked(*(f"adapter={place}" for place in places), f"corrections={tmp_path / 'accepted'}")
    )
    app = make_app(state, "a-token-of-the-tests", {"localhost"})
    with TestClient(app, base_url="http://localhost") as client:
        client.headers["Authorization"] = "Bearer a-token-of-the-tests"
        yield client


def test_every_model_answers_to_prompts_and_finds_everything(client, pictures):
    content = (pictures / "a.png").read_bytes()
    image = client.post("/api/images", params={"name": "a.png"}, content=content).json()["image"]
    for name in ("box", "auto", "base"):
        made = client.post(f"/api/images/{image}/objects", json={"adapter": name}).json()
        prompt = {"kind": "box", "box": [3, 3, 20, 15]}
        answer = client.post(
            f"/api/images/{image}/objects/{made['object']}/prompts", json=prompt
        ).json()
        assert sum(answer["mask"]["counts"]) == 600
        body = {"b64img": base64.b64encode(content).decode(), "points_per_side": 2}
        body["checkpoint_url"] = f"samadapt:{name}"
        answer = client.post("/sam/automask/", json=body)
        assert answer.status_code == 200, answer.text


def test_accepted_masks_are_read_by_the_engine(client, pictures, tmp_path, capsys):
    for name in ("a", "b"):
        content = (pictures / f"{name}.png").read_bytes()
        given = {"name": f"{name}.png"}
        image = client.post("/api/images", params=given, content=content).json()["image"]
        place = f"/api/images/{image}"
        client.post(f"{place}/objects", json={"label": "cell"})
        mask = {"size": [20, 30], "counts": [100, 20, 480]}
        answer = client.post(f"{place}/objects/1/prompts", json={"kind": "mask", "mask": mask})
        assert answer.status_code == 200, answer.text
        assert client.post(f"{place}/accept", json={}).json() == {"file": f"{name}.png"}
    command = ["engine", "accept", f"workspace={tmp_path / 'work'}", f"images={pictures}"]
    assert main([*command, f"input={tmp_path / 'accepted'}", "classes={cell: 1}"]) == 0
    assert "2 images for training" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_serves_until_a_signal_comes(adapter_at, tmp_path):
    adapter = adapter_at(tmp_path / "one", classes=["cell"])
    command = [sys.executable, "-m", "samadapt", "serve", f"adapter={adapter}", "port=0"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        said = ""
        while "Ctrl-C ends it" not in said:
            line = child.stderr.readline()
            assert line, said
            said += line
        url, token = re.search(r"open (http://127\.0\.0\.1:\d+)/\?token=(\S+)", said).groups()
        headers = {"Authorization": f"Bearer {token}"}
        picture = tmp_path / "a.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).save(
            picture
        )

        def post(path: str, body: bytes) -> dict:
            request = urllib.request.Request(f"{url}{path}", body, headers)
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)

        image = post("/api/images?name=a.png", picture.read_bytes())["image"]
        one = post(f"/api/images/{image}/objects", b"{}")["object"]
        prompt = {"kind": "box", "box": [3, 3, 20, 15]}
        answer = post(f"/api/images/{image}/objects/{one}/prompts", json.dumps(prompt).encode())
        assert sum(answer["mask"]["counts"]) == 600
    finally:
        child.send_signal(signal.SIGINT)
        _, rest = child.communicate(timeout=120)
    assert child.returncode == 130, rest
    assert "Traceback" not in rest
