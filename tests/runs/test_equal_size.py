"""The size of a method is chosen to train a given number of parameters."""

from __future__ import annotations

import pytest
import torch

from samadapt.adapters.injection import inject
from samadapt.config.sweep_arguments import sweep_from_arguments
from samadapt.errors import ConfigError
from samadapt.runs.equal_size import size_for
from samadapt.sam.model import build_sam

TARGET = 60_000


@pytest.fixture(scope="module")
def asked():
    call = ["recipe=medical", "peft=lora,dora", f"equal_parameters={TARGET}"]
    return sweep_from_arguments(call)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "dora", "fact", "adaptformer", "adalora", "loha"])
def test_methods_of_other_kinds_train_about_as_many(asked, name) -> None:
    values = {"peft": name, "peft.blocks": "last:8"}
    size = size_for(asked.trial(values), TARGET, 200)
    assert size
    method = asked.trial(values | size).peft
    with torch.device("meta"):
        sam = build_sam("lite_medsam")
    blocks = sam.attention_blocks()[-8:]
    trained = method.count_parameters(sam, blocks)
    assert trained == pytest.approx(TARGET, rel=0.1)
    (option, *_) = size
    for step in (-1, 1):  # no other size is nearer
        other = {option: str(int(size[option]) + step)}
        if name == "adalora":
            other["peft.first_rank"] = str(2 * int(other["peft.rank"]))
        count = asked.trial(values | other).peft.count_parameters(sam, blocks)
        assert abs(count - TARGET) >= abs(trained - TARGET)


def test_a_method_that_cannot_come_near_is_refused(asked) -> None:
    with pytest.raises(ConfigError, match=r"peft=ia3 .* trains 11200 parameters of the encoder"):
        size_for(asked.trial({"peft": "ia3", "peft.blocks": "last:8"}), TARGET, 200)
    with pytest.raises(ConfigError, match=r"the nearest is peft\.rank=4096"):
        size_for(asked.trial({"peft": "vera", "peft.blocks": "last:8"}), TARGET, 200)


def test_blocks_that_follow_from_the_images_count(asked) -> None:
    config = asked.trial({"peft": "lora", "peft.blocks": "auto"})
    assert size_for(config, TARGET, 200) == {"peft.rank": "9"}


@pytest.mark.slow
def test_the_count_is_that_of_the_injected_model() -> None:
    call = ["recipe=photos", "model=tiny", "peft=lora,dora", "equal_parameters=3000"]
    asked = sweep_from_arguments([*call, "peft.blocks=all"])
    for name in ("lora", "dora"):
        values = {"peft": name, "peft.blocks": "all"}
        method = asked.trial(values | size_for(asked.trial(values), 3000, 200)).peft
        injection = inject(build_sam("tiny"), method)
        encoder = injection.trainable - injection.count("decoder")
        assert encoder == pytest.approx(3000, rel=0.25)
