"""What a sweep tries: every combination of a grid once, or what TPE proposes."""

from __future__ import annotations

import pytest

from samadapt.config.search_space import Interval
from samadapt.config.sweep_arguments import sweep_from_arguments
from samadapt.errors import ConfigError
from samadapt.runs.sweep_results import importance
from samadapt.runs.sweep_search import TrialMaker, make_search

optuna = pytest.importorskip("optuna")


def search_of(*arguments):
    asked = sweep_from_arguments(["recipe=medical", *arguments])
    return make_search(TrialMaker(asked, "cpu", "fp32", 200))


def ended(proposal, value=None, **options):
    """The trial of a proposal, as the journal holds it."""
    state = optuna.trial.TrialState.RUNNING if value is None else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params=dict(proposal.params),
        distributions=dict(proposal.distributions),
        user_attrs={"digest": proposal.digest, "values": dict(proposal.values)},
        **options,
    )


def run_search(search, score, count=1000):
    trials = []
    while len(trials) < count and (proposal := search.propose(trials)) is not None:
        trials.append(ended(proposal, score(proposal.values)))
    return trials


def test_a_small_grid_is_run_whole_and_nothing_twice():
    search = search_of("peft=lora,dora,ia3", "peft.rank=4,8,16")
    trials = run_search(search, lambda values: 0.5)
    assert len(trials) == search.total == 7
    assert len({trial.user_attrs["digest"] for trial in trials}) == 7
    _, config = search.maker.make(trials[-1].user_attrs["values"])
    assert (config.peft.name, config.precision, config.device) == ("ia3", "fp32", "cpu")
    assert config.eval.max_cases == 0


def test_values_that_mean_the_same_are_one_trial():
    # rank 4 is alpha's default, so alpha=4 changes nothing only where it is written out.
    search = search_of("train.clip=1,1.0,2")
    assert search.total == 2


@pytest.mark.slow
def test_equal_parameters_are_part_of_the_trial():
    search = search_of("peft=lora,adaptformer", "equal_parameters=60000")
    assert [dict(one.values) for one in search.grid] == [
        {"peft": "lora", "peft.blocks": "last:8", "peft.rank": "9"},
        {"peft": "adaptformer", "peft.blocks": "last:8", "peft.hidden": "18"},
    ]


def quality(values):
    """The best trial is a LoRA with a rate of about 1e-3."""
    import math

    return (
        0.8 - 0.1 * abs(math.log10(float(values["train.lr"])) + 3) - 0.1 * (values["peft"] == "ia3")
    )


TPE = ("peft=lora,ia3", "peft.rank=4,8", "train.lr=interval(1e-5,1e-1)", "trials=40")


@pytest.mark.slow
def test_tpe_proposes_what_is_used_and_finds_the_better_half():
    search = search_of(*TPE)
    trials = run_search(search, quality)
    assert len(trials) == 40
    for trial in trials:
        values = trial.user_attrs["values"]
        assert ("peft.rank" in values) is (values["peft"] == "lora")
        assert values["peft.blocks"] == "last:8"
        assert "peft.blocks" not in trial.params  # there was nothing to choose
        assert isinstance(search.dimensions["train.lr"], Interval)
        assert 1e-5 <= trial.params["train.lr"] == float(values["train.lr"]) <= 1e-1
    late = [trial.value for trial in trials[20:]]
    early = [trial.value for trial in trials[:10]]
    assert sum(late) / len(late) > sum(early) / len(early) + 0.03
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    shares = importance(study)
    assert set(shares) == {"peft", "peft.rank", "train.lr"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["peft.rank"] < max(shares["train.lr"], shares["peft"])


def test_a_resumed_search_goes_on_as_one_that_was_not_stopped():
    trials = run_search(search_of(*TPE), quality, 14)
    again = run_search(search_of(*TPE), quality, 14)
    assert [t.params for t in trials] == [t.params for t in again]
    fresh = search_of(*TPE).propose(trials[:12])
    assert dict(fresh.params) == trials[12].params
    other = search_of(*TPE, "seed=1").propose(trials[:12])
    assert dict(other.params) != trials[12].params


def test_workers_get_other_trials_while_some_run():
    search = search_of(*TPE)
    running = []
    for _ in range(4):
        running.append(ended(search.propose(running)))
    assert len({trial.user_attrs["digest"] for trial in running}) == 4


def test_fewer_trials_than_combinations_are_searched_without_repetition():
    search = search_of("peft=lora,dora,ia3", "peft.rank=4,8,16", "trials=6")
    assert search.grid is None
    trials = run_search(search, lambda values: float(values["peft"] == "ia3"))
    assert len({trial.user_attrs["digest"] for trial in trials}) == 6
    assert search_of("peft.rank=4,8", "trials=6").total == 2


def test_combinations_that_do_not_fit_are_left_out_with_a_note(capsys):
    search = search_of(
        "peft=adalora", "peft.rank=4,16", "peft.first_rank=8,32",
        "train.lr=interval(1e-4,1e-3)", "trials=12",
    )  # fmt: skip
    trials = run_search(search, lambda values: 0.5)
    assert len(trials) == 12
    pairs = {(t.params["peft.rank"], t.params["peft.first_rank"]) for t in trials}
    assert ("16", "8") not in pairs
    assert capsys.readouterr().err.count("samadapt: note: not tried: peft.") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.lr=interval(1e-4,1e-2)"], "the values have infinitely many combinations"),
        (["peft.rank=range(1,105)"], "the values have 104 combinations; give trials=30"),
        (["peft.rank=4,0"], "peft.rank: expected a whole number of at least 1; got 0"),
        (["train.lr=interval(1e-4,2)", "trials=3"], "train.lr: expected a number above 0"),
        (["peft=lora,lroa"], "peft must be one of"),
        (["peft=lora,lroa", "train.lr=interval(1e-4,1)", "trials=3"], "peft must be one of"),
        (["peft.rnk=4,8"], "peft.rnk: no trial has this key"),
        (["peft=adalora", "peft.rank=4,16"], "peft.first_rank"),
    ],
)
def test_a_mistake_is_found_before_anything_is_trained(arguments, message):
    with pytest.raises(ConfigError) as caught:
        search_of(*arguments)
    assert message in str(caught.value)
