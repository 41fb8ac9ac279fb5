"""Every recipe, found by itself, with every method."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from samadapt.adapters.injection import Injection, inject
from samadapt.adapters.store import AdapterRecord, save_adapter
from samadapt.config.compose import compose, recipes, to_dict
from samadapt.config.keys import flatten
from samadapt.config.schema import Config
from samadapt.methods import METHODS, Method
from samadapt.runs.finetune import finetune
from samadapt.sam.model import Sam

RECIPES = recipes()


def test_the_issue_s_recipes_are_there() -> None:
    assert {"medical", "medical_ct", "hippocampus", "photos", "few_labels"} <= set(RECIPES)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("recipe", RECIPES)
def test_composes(recipe: str, method: str) -> None:
    config = compose(recipe, [f"peft={method}"])
    assert config.recipe == recipe
    assert config.peft.name == method


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_holds_only_values_that_differ_from_the_defaults_with_reasons(recipe: str) -> None:
    path: Path = RECIPES[recipe]
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# "), "the first line says what the recipe is for"
    defaults = flatten(to_dict(Config()), Config)
    stated = flatten(yaml.safe_load(text), Config)
    same = {key for key, value in stated.items() if defaults.get(key) == value}
    assert not {key for key in same if not key.endswith(".name")}  # a name heads its group
    bare = [
        line
        for line in text.splitlines()[1:]
        if ": " in line and " # " not in line and not line.lstrip().startswith("name: lora")
    ]
    assert not bare, "each line says its reason"


def test_medical_needs_nothing_but_packages() -> None:
    config = compose("medical")
    assert (config.model.name, config.data.name) == ("lite_medsam", "mni152")
    assert (config.model.checkpoint, config.data.root) == (None, None)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


# Shared factors need layers of one width, and LiteMedSAM's last stage has such.
PLACES = {"frod": "last:2"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's, about peft's SHiRA
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains_on_mri(
    method: str,
    shared_data: Callable[[str], Path],
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five steps of the shipped recipe on few cases, small: losses are numbers, weights move.

    The decoder is trained as well, so the method's own weights in the encoder are looked at.
    """

    def saving(sam: Sam, method: Method) -> Injection:
        injection = inject(sam, method)
        record = AdapterRecord(
            sam.build.name, "", sam.image_size, num_masks=sam.build.num_multimask
        )
        save_adapter(tmp_path / "start", sam, injection, record)
        return injection

    monkeypatch.setattr("samadapt.runs.context.inject", saving)
    root = shared_data("msd_hippocampus")
    places = {"data.root": root, "output.dir": tmp_path, "cache.dir": features}
    overrides = [f"{key}={json.dumps(str(path))}" for key, path in places.items()]
    overrides += [f"peft={method}", "peft.decoder=full"]
    overrides += [f"peft.blocks={PLACES[method]}"] if method in PLACES else []
    few = ["model.image_size=84", "data.max_cases=6", "train.validate_cases=1", "eval.max_cases=1"]
    result = finetune(
        compose("hippocampus", [*overrides, *few, "train.steps=5", "eval.overlays=0"])
    )
    lines = (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert len(losses) == 5
    assert all(map(math.isfinite, losses))
    before, after = (result.summary[name]["dice"] for name in ("zero_shot", "adapted"))
    assert before > 0.5
    assert after > 0.5
    assert after != before
    assert result.adapter_dir is not None
    start, end = (
        load_file(place / "adapter_model.safetensors")
        for place in (tmp_path / "start", result.adapter_dir)
    )
    assert start.keys() == end.keys()
    own = [name for name in start if not name.startswith("base_model.model.mask_decoder.")]
    assert bool(own) is (method not in ("none", "decoder"))
    assert any(not torch.equal(start[name], end[name]) for name in own) is bool(own)
