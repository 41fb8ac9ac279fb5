"""``samadapt sweep``: equal to runs by hand, resumed with what is missing, shared by processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from samadapt.cli import main
from samadapt.commands.sweep import render
from samadapt.config.compose import compose
from samadapt.config.sweep_arguments import sweep_from_arguments
from samadapt.errors import ConfigError
from samadapt.runs import sweep
from samadapt.runs.finetune import finetune
from samadapt.runs.past_runs import list_runs
from samadapt.runs.sweep_runner import Child, Machine, Runner, _warnings_held_back, validations
from samadapt.runs.sweep_study import SweepStudy
from samadapt.training.progress import append_line

optuna = pytest.importorskip("optuna")

GRID = ["peft=lora,ia3", "train.lr=1e-2,1e-3"]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sweeps(tmp_path):
    return sorted((tmp_path / "runs" / "small").glob("*-sweep-*"))


def metrics(run_dir):
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{k: v for k, v in one.items() if k not in ("seconds", "memory_bytes")} for one in lines]


def starts(run_dir):
    """How often a training was started in a run directory."""
    return (run_dir / "console.txt").read_text(encoding="utf-8").count("run directory: ")


@pytest.fixture
def arguments(make_pictures, recipe):
    return [f"recipe={recipe}", f"data.root={make_pictures(8)}", "threads=1", "seeds=1"]


@pytest.fixture
def started(heard_signals):
    """``started("sweep", ...)``: the command in a process of its own, which ends with the test."""
    processes = []

    def start(*words):
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "samadapt", *words]
        processes.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True,
                                          encoding="utf-8"))  # fmt: skip
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()  # the test may have read it to its end


def wait_for(condition, process, seconds=300):
    """Wait until a condition holds; fail if the process ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_grid_of_four_equals_four_runs_by_hand(arguments, recipe, tmp_path, capsys):
    assert main(["sweep", *arguments, *GRID, "workers=2"]) == 0
    said = capsys.readouterr()
    (parent,) = sweeps(tmp_path)
    summary = read(parent / "sweep.json")
    assert len(summary["trials"]) == 4
    machine = read(parent / "machine.json")
    assert (machine["precision"]["name"], machine["threads"]) == ("fp32", 1)
    for trial in summary["trials"]:
        run_dir = parent / trial["run_dir"]
        typed = [f"{key}={text}" for key, text in trial["values"].items()]
        overrides = [arguments[1], "eval.max_cases=0", *typed]
        by_hand = finetune(compose(str(recipe), overrides))
        for name in ("adapter/adapter_model.safetensors", "splits.json"):
            assert (run_dir / name).read_bytes() == (by_hand.run_dir / name).read_bytes()
        assert metrics(run_dir) == metrics(by_hand.run_dir)
        assert read(run_dir / "env.json")["threads"] == 1
        assert by_hand.summary["best_validation_dice"] == trial["validation"]
        assert not (run_dir / "eval" / "per_case.csv").read_text(encoding="utf-8").count("adapted")
    # The held-out cases were scored once, for the winner; its command line gives the same scores.
    best = max(summary["trials"], key=lambda trial: trial["validation"])
    assert summary["winner"]["number"] == best["number"]
    tables = {path: path.read_text(encoding="utf-8") for path in parent.rglob("per_case.csv")}
    (scored,) = (path for path, text in tables.items() if "adapted" in text)
    assert scored.parents[1] == parent / "winner" / "seed_0"
    command = summary["winner"]["command"].split()
    assert command[:2] == ["samadapt", "finetune"]
    assert main(command[1:]) == 0
    again = max((tmp_path / "runs" / "small").glob("2*-tiny*"), key=lambda p: p.stat().st_mtime)
    assert (again / "eval" / "per_case.csv").read_bytes() == scored.read_bytes()
    # The terminal, the page and the files say it.
    out = " ".join(said.out.split())
    assert f"winner: trial {best['number']} of 4:" in out
    assert "held-out Dice over 1 seed:" in out
    assert "sweep: 4 trials, every combination once" in said.err
    assert "fp32, 1 thread each, 2 at the same time" in said.err
    page = (parent / "report.html").read_text(encoding="utf-8")
    assert "4 trials" in page
    assert page.count("data:image/png") == 2
    assert len((parent / "sweep.csv").read_text(encoding="utf-8").splitlines()) == 5
    rows = {row["name"]: row["state"] for row in list_runs(tmp_path / "runs")}
    assert rows[str(parent)] == "finished"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no kill -9")
def test_a_killed_sweep_runs_only_what_is_missing(arguments, tmp_path, started, capsys):
    process = started("sweep", *arguments, *GRID)
    wait_for(lambda: list(tmp_path.rglob("trials/0001/metrics.jsonl")), process)
    process.kill()  # its training goes on without it
    process.wait()
    (parent,) = sweeps(tmp_path)
    before = (parent / "trials" / "0000" / "metrics.jsonl").stat().st_mtime_ns
    assert main(["sweep", f"resume={parent}", "--json"]) == 0
    said = capsys.readouterr()
    assert "trial 0 of" not in said.err
    assert (parent / "trials" / "0000" / "metrics.jsonl").stat().st_mtime_ns == before
    assert [starts(parent / "trials" / f"000{n}") for n in range(4)] == [1, 1, 1, 1]
    summary = json.loads(said.out)["summary"]
    assert [trial["state"] for trial in summary["trials"]] == ["finished"] * 4
    assert [trial["validation"] for trial in summary["trials"]] == [
        max(dice for _, dice in validations(parent / trial["run_dir"]))
        for trial in summary["trials"]
    ]
    # A finished sweep has nothing to run, and writes its results again.
    assert main(["sweep", f"resume={parent}"]) == 0
    assert [starts(parent / "trials" / f"000{n}") for n in range(4)] == [1, 1, 1, 1]
    assert starts(parent / "winner" / "seed_0") == 2  # of the trial, and of its scores


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGTERM")
def test_a_stopped_sweep_saves_its_trials_and_goes_on(arguments, tmp_path, started, capsys):
    many = [*arguments, "train.lr=1e-2,1e-3", "train.steps=400", "train.validate_every=50"]
    process = started("sweep", *many, "workers=2")
    wait_for(lambda: len(list(tmp_path.rglob("checkpoints/LATEST"))) == 2, process)
    process.send_signal(signal.SIGTERM)
    message = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM
    (parent,) = sweeps(tmp_path)
    assert f"go on with: samadapt sweep resume={parent}" in message
    reached = [len(metrics(parent / "trials" / f"000{n}")) for n in range(2)]
    assert all(0 < count < 408 for count in reached)
    assert main(["sweep", f"resume={parent}", "workers=2"]) == 0
    for number in range(2):
        steps = [line["step"] for line in metrics(parent / "trials" / f"000{number}")
                 if line["kind"] == "train"]  # fmt: skip
        assert steps == list(range(1, 401))
        assert starts(parent / "trials" / f"000{number}") == 2


@pytest.mark.slow
def test_two_processes_share_a_sweep(arguments, tmp_path, started):
    first = started("sweep", *arguments, *GRID, "privacy=true")
    wait_for(lambda: list(tmp_path.rglob("trials/0000/config.yaml")), first)
    (parent,) = sweeps(tmp_path)
    second = started("sweep", f"resume={parent}")
    said = [process.communicate()[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert [starts(parent / "trials" / f"000{n}") for n in range(4)] == [1, 1, 1, 1]
    begun = [sum(f"trial {n} of 4 begins" in text for n in range(4)) for text in said]
    assert sum(begun) == 4
    assert min(begun) >= 1
    assert (parent / "sweep.json").is_file()
    names = {tuple(read(path)["val"]) for path in parent.glob("*/*/splits.json")}
    assert len(names) == 1
    assert all(name.startswith("case_") for name in next(iter(names)))


@pytest.mark.slow
def test_the_winner_is_trained_with_several_seeds(arguments, capsys, tmp_path):
    call = [*arguments[:-1], "seeds=3", "peft.rank=1,2", "train.steps=2", "workers=2"]
    assert main(["sweep", *call, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (parent,) = sweeps(tmp_path)
    winner = result["summary"]["winner"]
    assert [entry["run_dir"] for entry in winner["seeds"]] == [f"winner/seed_{n}" for n in range(3)]
    scores = [read(parent / e["run_dir"] / "eval" / "summary.json") for e in winner["seeds"]]
    assert [e["held_out"] for e in winner["seeds"]] == [s["adapted"]["dice"] for s in scores]
    assert winner["seeds"][0]["validation"] == winner["validation"]
    spread = winner["spread"]["held_out"]
    assert spread["min"] <= spread["mean"] <= spread["max"]
    assert "over 3 seeds" in render(result)


@pytest.mark.slow
def test_a_refused_first_trial_ends_the_sweep_and_leaves_nothing(arguments, tmp_path, capsys):
    assert main(["sweep", *arguments, "peft.blocks=last:98,last:99"]) == 2
    said = capsys.readouterr().err
    assert "trial 0: peft.blocks=last:98: the encoder has" in said
    assert "Traceback" not in said
    assert not sweeps(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.root=nowhere", "peft.rank=1,2"], "nowhere"),
        (["train.lr=interval(1e-4,1e-2)"], "give trials=30"),
        (["peft.rank=1,2", "device=cuda"], "device=cuda"),
        ([], "a sweep searches keys with several values"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(arguments, tmp_path, capsys, options, message):
    keys = {option.partition("=")[0] for option in options}
    kept = [one for one in arguments if one.partition("=")[0] not in keys]
    if "device" in keys and __import__("torch").cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["sweep", *kept, *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not sweeps(tmp_path)


def test_a_plan_trains_nothing(arguments, tmp_path, capsys):
    call = ["sweep", *arguments, "peft=lora,ia3", "peft.rank=1,2", "dry=true"]
    assert main(call) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "sweep: 3 trials, every combination once" in said
    assert "peft.rank = 1, 2 (only lora)" in said
    assert "held-out cases, scored for it alone: 2" in said
    assert not sweeps(tmp_path)
    assert main([*call, "--json", "train.max_seconds=9"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert [one.get("peft.rank") for one in plan["grid"]] == ["1", "2", None]
    assert plan["pruning"].startswith("trials of limited time")
    assert plan["limits"] == {"max_seconds": 9.0}


def test_the_machine_of_a_begun_sweep_is_not_chosen_anew(arguments, tmp_path):
    asked = sweep_from_arguments([*arguments, "peft.rank=1,2"])
    machine = sweep._machine(asked, tmp_path)  # of a submitted sweep, whose first job begins
    assert read(tmp_path / "machine.json")["threads"] == 1
    assert sweep._machine(asked, tmp_path) == machine
    SweepStudy(tmp_path, None)
    (tmp_path / "machine.json").unlink()
    with pytest.raises(ConfigError, match="restore the file"):
        sweep._machine(asked, tmp_path)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="Windows has no SIGUSR2")
def test_a_training_does_not_hear_the_warning_of_a_cluster(heard_signals):
    number, heard = signal.SIGUSR2, []
    before = signal.signal(number, lambda *_: heard.append(number))
    try:
        with _warnings_held_back():
            process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            os.kill(os.getpid(), number)
        process.send_signal(number)
        process.communicate(b"\n")
        assert process.returncode == 0
        assert heard == [number]  # this process hears it
    finally:
        signal.signal(number, before)


@pytest.fixture
def watched(tmp_path):
    """A runner and a study with five finished trials, and a claim of the sixth."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2)
    study = SweepStudy(tmp_path, pruner)
    given = optuna.distributions.IntDistribution(0, 9)
    from samadapt.runs.sweep_study import Proposal

    def propose(trials):
        n = len(trials)
        return Proposal({"n": str(n)}, f"digest {n}", {"n": n}, {"n": given})

    for _ in range(5):
        claim = study.claim(propose, set())
        for step in (1, 2, 3):
            claim.trial.report(0.5, step)
        study.finish(claim, 0.5, pruned=False)
    claim = study.claim(propose, set())
    claim.run_dir.mkdir()
    return Runner(tmp_path, Machine("cpu", {"name": "fp32"}, 1), 1), study, claim


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_trial_below_the_median_is_stopped_whenever_its_scores_are_read(watched, has_ended):
    runner, study, claim = watched
    wait = "" if has_ended else "import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", wait])
    if has_ended:
        process.wait()
    runner.children.append(child := Child(claim.run_dir, process, claim, steps=4))
    path = claim.run_dir / "metrics.jsonl"
    append_line(path, {"kind": "validate", "step": 1, "dice": 0.1})  # every trial gets so far
    if not has_ended:
        runner._look_after(child, study, set())
        assert not child.pruned
    append_line(path, {"kind": "validate", "step": 2, "dice": 0.2})
    append_line(path, {"kind": "validate", "step": 3, "dice": 0.9})
    for _ in range(500):
        if not runner.children:
            break
        runner._look_after(child, study, set())
        time.sleep(0.02)
    trial = study.trials()[-1]
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.intermediate_values == {1: 0.1, 2: 0.2}
    assert process.returncode == (0 if has_ended else -signal.SIGTERM)
    assert not runner.children


def test_a_good_trial_and_the_last_step_are_never_stopped(watched, capsys):
    runner, study, claim = watched
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for step, dice in ((2, 0.6), (4, 0.1)):
        append_line(
            claim.run_dir / "metrics.jsonl", {"kind": "validate", "step": step, "dice": dice}
        )
    runner.children.append(child := Child(claim.run_dir, process, claim, steps=4))
    runner._look_after(child, study, set())
    assert study.trials()[-1].value == 0.6
    assert (
        "trial 5: validation Dice 0.6000 (best so far 0.6000, trial 5)" in capsys.readouterr().err
    )


def test_killed_trials_are_not_failed_ones(watched, capsys):
    runner, study, claim = watched
    process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    process.wait()
    lost: set[int] = set()
    runner.children.append(child := Child(claim.run_dir, process, claim))
    runner._look_after(child, study, lost)
    assert lost == {5}
    assert not study.trials()[-1].state.is_finished()
    assert "trial 5: killed" in capsys.readouterr().err


def test_a_failed_trial_says_why_and_the_others_go_on(watched, capsys):
    runner, study, claim = watched
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    process.wait()
    text = "run directory: x\nsamadapt: error: the loss was NaN\n  in 5 steps\n"
    Path(claim.run_dir / "console.txt").write_text(text, encoding="utf-8")
    runner.children.append(child := Child(claim.run_dir, process, claim))
    runner._look_after(child, study, set())
    trial = study.trials()[-1]
    assert trial.state == optuna.trial.TrialState.FAIL
    assert trial.user_attrs["error"] == "the loss was NaN\n  in 5 steps"
    assert "trial 5 failed: the loss was NaN" in capsys.readouterr().err
