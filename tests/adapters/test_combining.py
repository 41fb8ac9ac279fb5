"""Several methods in one adapter: how they are named, and that each works as it does alone."""

from __future__ import annotations

import pytest
import torch

from samadapt.adapters.combining import find_method
from samadapt.adapters.injection import inject
from samadapt.config.compose import compose, from_yaml, to_yaml
from samadapt.errors import ConfigError


def test_a_command_line_names_several(tmp_path):
    config = compose("medical", ["peft=[lora, bias]", "peft.rank=8", "peft.blocks=all"])
    assert config.peft.name == "lora+bias"
    assert config.peft == find_method("lora+bias")(rank=8, blocks="all")
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert from_yaml(tmp_path / "config.yaml") == config
    assert compose("medical", ["peft=lora+bias", "peft.rank=8", "peft.blocks=all"]) == config


def test_a_recipe_names_several(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("peft: [lora, layernorm]\n", encoding="utf-8")
    assert compose(str(path)).peft.name == "lora+layernorm"


def test_an_option_that_two_have_is_told_apart(tiny_sam):
    method = find_method("fact+adaptformer")(fact_scale=0.5, adaptformer_scale=0.2, rank=3)
    fact, adaptformer = method.members
    assert (fact.scale, adaptformer.scale, fact.rank) == (0.5, 0.2, 3)
    with pytest.raises(ConfigError, match=r"peft\.scale: no such key; did you mean"):
        find_method("fact+adaptformer")(scale=0.5)


def test_what_is_trained_is_what_the_parts_train(fresh):
    together = inject(fresh(), find_method("lora+bias")(decoder="frozen"))
    parts = [inject(fresh(), find_method(name)(decoder="frozen")) for name in ("lora", "bias")]
    assert together.trainable == sum(part.trainable for part in parts)
    assert together.first_trainable_block == 0


def test_the_output_is_that_of_both(fresh, perturb, predict):
    """A bias beside a LoRA has the same effect as the same bias alone."""
    both, alone = fresh(), fresh()
    injection = inject(both, find_method("lora+bias")(decoder="frozen"))
    biases = inject(alone, find_method("bias")(decoder="frozen"))
    with torch.no_grad():
        for name, parameter in injection.parameters.items():
            if name.replace(".base_layer", "") in biases.parameters and "lora_" not in name:
                parameter.add_(0.1)
                biases.parameters[name.replace(".base_layer", "")].add_(0.1)
    torch.testing.assert_close(predict(both), predict(alone))
    perturb(injection)
    assert (predict(both) - predict(alone)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("lora,fact", r"peft=\[lora,fact\]: lora and fact cannot be combined.*linears"),
        ("lora,lora", "both change the linears"),
        ("lora,prompt_tokens", "both change the linears"),
        ("adapter,houlsby", "both change the bottlenecks"),
        ("bias,layernorm", "both change the vectors"),
        ("full,bias", "full and bias cannot be combined"),
        ("none,lora", "none and lora cannot be combined"),
        ("lora,biass", "did you mean 'bias'"),
    ],
)
def test_what_does_not_go_together_is_refused(names, message):
    with pytest.raises(ConfigError, match=message) as error:
        compose("medical", [f"peft=[{names}]"])
    assert "problems" not in str(error.value)


def test_each_part_checks_its_options():
    with pytest.raises(ConfigError, match=r"peft\.rank"):
        compose("medical", ["peft=[lora,bias]", "peft.rank=0"])
    with pytest.raises(ConfigError, match=r"peft\.no_such"):
        compose("medical", ["peft=[lora,bias]", "peft.no_such=0"])


def test_a_batch_of_a_combination_is_of_whole_stacks():
    from samadapt.runs.finetune import finetune

    config = compose("medical", ["peft=[adapter,layernorm]", "peft.depth=3"])
    with pytest.raises(ConfigError, match=r"train\.batch_size must be a multiple of 3"):
        finetune(config)
