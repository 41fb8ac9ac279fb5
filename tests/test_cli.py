"""The command line as a user meets it: exit codes, messages, speed of the light commands."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from samadapt import __version__, cli
from samadapt.cli import COMMANDS, SUMMARIES, main
from samadapt.commands import show
from samadapt.errors import ConfigError, DivergedError
from samadapt.methods import METHODS
from samadapt.prompts.policy import Kind

HEAVY = {"torch", "torchvision", "timm", "peft", "monai", "transformers", "matplotlib", "skimage"}


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out, err


def imported_by(*argv: str) -> set[str]:
    code = (
        f"import sys; from samadapt.cli import main; main({list(argv)!r});"
        "print(*{m.split('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    return set(done.stderr.split())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "--help")
    assert (code, err) == (0, "")
    for command in COMMANDS:
        assert f"samadapt {command}" in out
    assert set(COMMANDS) == set(SUMMARIES)


def test_no_arguments_show_the_help_and_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys)[0] == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "--version") == (0, f"samadapt {__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"samadapt {command}")


def test_help_of_finetune_fits_on_two_screens(capsys: pytest.CaptureFixture[str]) -> None:
    """The help lists the groups, the recipe's values and the keys of the chosen method alone."""
    out = said(capsys, "finetune", "recipe=medical", "peft=fact", "--help")[1]
    assert len(out.splitlines()) < 84
    for text in ("  train     how long", "train.steps=90", "peft=fact:", "peft.form=tt", "seed=0"):
        assert text in out
    assert "peft.hidden" not in out
    assert "recipes: few_labels, hippocampus" in said(capsys, "finetune", "--help")[1]


def test_help_of_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "finetune", "--help", "train")[1]
    for name in ("train.lr=null", "train.steps=null", "train.recompute=false"):
        assert name in out
    assert "data.root" not in out
    methods = said(capsys, "finetune", "--help", "peft")[1]
    assert "peft.decoder_rank=4" in methods
    assert all(f"  {name} " in methods for name in METHODS)
    assert "peft.hidden=64" in said(capsys, "finetune", "--help", "peft", "peft=adaptformer")[1]
    assert "prompts.jitter=0.1" in said(capsys, "evaluate", "--help", "prompts")[1]


def test_help_of_a_group_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys, "finetune", "--help", "trian")
    assert code == 2
    assert "finetune has no group 'trian'; did you mean 'train'?" in err
    assert "it has no groups" in said(capsys, "export", "--help", "train")[2]


def test_every_key_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    every = json.loads(said(capsys, "ls", "keys", "--json")[1])["keys"]
    assert {"train.lr", "data.root", "seed", "peft.blocks"} <= {row["name"] for row in every}
    assert all(row["about"] and row["type"] and row["default"] is not None for row in every)
    train = json.loads(said(capsys, "ls", "keys", "train", "--json")[1])["keys"]
    assert [row for row in every if row["name"].startswith("train.")] == train
    methods = json.loads(said(capsys, "ls", "keys", "peft", "--json")[1])["keys"]
    assert {row["method"] for row in methods} >= {"all", "lora", "fact", "late_blocks"}
    one = json.loads(said(capsys, "ls", "keys", "peft=fact", "--json")[1])["keys"]
    assert {row["name"] for row in one} >= {"peft.name", "peft.blocks", "peft.form"}
    assert "peft=fact: " in said(capsys, "ls", "keys", "peft")[1]
    assert "prompts.jitter=0.1" in said(capsys, "ls", "keys", "prompts")[1]
    code, _, err = said(capsys, "ls", "keys", "trian")
    assert code == 2
    assert "did you mean 'train'" in err


def test_ls_lists_what_else_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ["models", "prompts", "losses", "scores", "targets"]
    listed = json.loads(said(capsys, "ls", *kinds, "--json")[1])
    names = {kind: [row["name"] for row in rows] for kind, rows in listed.items()}
    assert set(names["prompts"]) == {*get_args(Kind), "propagate"}
    assert {"auto", "sam", "dice_ce", "tversky", "cl_dice"} <= set(names["losses"])
    assert {"dice", "iou", "hd95"} <= set(names["scores"])
    assert {"peft", "sam", "hf", "onnx"} <= set(names["targets"])
    marked = {row["name"] for row in listed["models"] if "for tests" in row["about"]}
    assert marked == {name for name in names["models"] if name.startswith("tiny")}


def test_the_help_imports_nothing_heavy() -> None:
    others = {"hydra", "omegaconf", "pydantic", "numpy", "yaml", "rich"}
    assert not (HEAVY | others) & imported_by("--help")


@pytest.mark.parametrize(
    "argv",
    [
        ["show", "recipe=medical", "peft.rank=3"],
        ["show", "schema"],
        ["ls"],
        ["ls", "keys", "peft"],
        ["ls", "runs"],
        *([command, "--help"] for command in COMMANDS),
    ],
    ids=" ".join,
)
def test_light_commands_import_no_torch(argv: list[str]) -> None:
    assert not HEAVY & imported_by(*argv)


@pytest.mark.parametrize(
    ("argv", "limit_s"), [(["--help"], 0.3), (["show", "recipe=medical"], 0.5)]
)
def test_light_commands_answer_at_once(argv: list[str], limit_s: float) -> None:
    def seconds() -> float:
        """The limits are in processor time, which a busy machine does not change."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "samadapt", *argv], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < limit_s


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    code, out, err = said(capsys, "show", "recipe=medical", "peft.rank=3", "train.lr=1e-5")
    assert (code, err) == (0, "")
    shown = yaml.safe_load(out)
    assert (shown["peft"]["rank"], shown["train"]["lr"]) == (3, 1e-5)
    as_json = json.loads(said(capsys, "show", "recipe=medical", "peft.rank=3", "--json")[1])
    assert as_json["peft"]["rank"] == 3


def test_what_show_prints_is_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = said(capsys, "show", "recipe=photos")[1]
    (tmp_path / "again.yaml").write_text(out, encoding="utf-8")
    assert said(capsys, "show", f"recipe={tmp_path / 'again.yaml'}")[1] == out


def test_ls(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "ls")
    assert code == 0
    for name in ("medical", "lite_medsam", "lora", "mni152", "msd", "folder"):
        assert name in out
    listed = json.loads(said(capsys, "ls", "peft", "models", "--json")[1])
    assert list(listed) == ["peft", "models"]
    assert len({method["name"] for method in listed["peft"]}) >= 18
    printed = said(capsys, "ls", "peft")[1].splitlines()
    for method in listed["peft"]:
        assert method["about"].strip()
        assert "\n" not in method["about"]
        assert any(line.split()[:1] == [method["name"]] for line in printed), method["name"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["finetun"], "there is no command 'finetun'; did you mean 'finetune'?"),
        (["show", "recipe=medical", "train.lrr=1"], "no such key; did you mean 'train.lr'?"),
        (["show", "recipe=medical", "train.lr=x"], "train.lr: expected a number above 0 and at"),
        (["show", "recipe=medcal"], "got 'medcal'; did you mean 'medical'?"),
        (["show", "recipe=/none/x.yaml"], "/none/x.yaml: no such file"),
        (["show", "train.lr=1"], "name a recipe"),
        (["show", "recipe=medical", "--jsn"], "there is no flag '--jsn'; did you mean '--json'?"),
        (["ls", "model"], "got 'model'; did you mean 'models'?"),
        (["check", "data=msdd", "data.root=/none"], "'msdd'"),
        (["check", "root=/none"], "root: no such key; did you mean 'data.root'?"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(capsys, *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_check_of_a_missing_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "none"
    argv = ["check", "data=msd", f"data.root={missing}"]
    code, out, _ = said(capsys, *argv)
    assert code == 2
    assert str(missing) in out
    code, out, _ = said(capsys, *argv, "--json")
    assert code == 2
    result = json.loads(out)
    assert result["errors"] == len(result["findings"]) == 1
    assert result["findings"][0]["fix"]


def raising(error: BaseException) -> Any:
    def run(arguments: list[str]) -> dict[str, Any]:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("a mistake"), 2, "samadapt: error: a mistake"),
        (DivergedError("the loss was NaN"), 1, "samadapt: error: the loss was NaN"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("a bug"), 1, "unexpected RuntimeError: a bug"),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(show, "run", raising(error))
    found, out, err = said(capsys, "show")
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert "Traceback" in said(capsys, "show", "--debug")[2]


def test_an_error_s_causes_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = RuntimeError("outside")
    error.__cause__ = ValueError("inside")
    monkeypatch.setattr(show, "run", raising(error))
    assert "RuntimeError: outside; because ValueError: inside" in said(capsys, "show")[2]


def test_exit_code_of_a_result_and_nothing_to_render(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = SimpleNamespace(
        HELP="", SCHEMA=None, run=lambda arguments: {"exit_code": 3, "a": 1}, render=lambda r: ""
    )
    monkeypatch.setattr(cli, "import_module", lambda name: module)
    assert said(capsys, "show") == (3, "", "")
    assert said(capsys, "show", "--json")[:2] == (3, '{\n  "a": 1\n}\n')
