"""Rehearse a run: do a little of each of its phases, and measure memory and time.

``rehearse`` is what ``samadapt plan`` does. ``measure_beginning`` is less, in a run that begins.

Nothing here has its own idea of what a step or a score needs. The features, the training steps and
the scores are those of the run itself, on its own data and model, but few of them: five batches of
features, a few steps, and the scores of a few batches. Steps are tried with one slice and with two.
What a whole batch needs follows from these, because memory and time grow about linearly with its
slices; if it fits into the memory that is free, it is tried as well. Everything is done once before
it is timed, because the first pass of each shape is slow.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil

from samadapt.runs.batch_size import with_batch_size
from samadapt.runs.context import RunContext, open_run
from samadapt.runs.feature_planner import FEATURES_BATCH, FeaturePlanner
from samadapt.runs.memory_budget import within_memory
from samadapt.runs.plan import Phase, Plan, Rehearsal, predict, remember
from samadapt.runs.run_loss import RunLosses, choose_losses
from samadapt.runs.run_slices import RunSlices, divide_slices
from samadapt.runs.scorer import Scorer, make_scorer
from samadapt.runs.train_adapter import prepare_training, train_adapter
from samadapt.system import processes
from samadapt.system.machine import busy_processors
from samadapt.system.peak_memory import (
    memory_bytes,
    peak_memory,
    peak_memory_bytes,
    return_free_memory,
)
from samadapt.training.feature_stores import MemoryStore
from samadapt.training.loop import TrainableTail, learn_step
from samadapt.training.progress import Progress
from samadapt.training.recompute import recomputed
from samadapt.training.state import random_states, set_random_states

if TYPE_CHECKING:
    from samadapt.config.schema import Config
    from samadapt.data.stacks import Stacks
    from samadapt.data.types import SliceRef
    from samadapt.prompts.policy import PromptPolicy

SEARCHED = 64
"""Training slices among which those with the most objects are found."""

FITS = 0.8
"""A batch is tried if the memory that follows from fewer slices is at most this share of what is
free."""

BATCHES = 5
"""Batches of features that are measured; the time is the median of all but the first."""

SLOW_S = 5.0
"""A model that takes more CPU seconds for the scores of one slice is rehearsed with two of them at
most. Importing what scores need takes two of these seconds."""


def plan(config: Config, *, quick: bool = False) -> Plan:
    """Rehearse a run in this process and predict what it will need.

    With ``memory``, the run is the one that is chosen for it.

    Args:
        config: the configuration of the run.
        quick: see ``rehearse``.

    Raises:
        UserError: for all that the run itself would refuse.
    """
    config = within_memory(with_batch_size(config))
    folds = config.folds or 1
    if config.folds is not None:
        config = replace(config, folds=None, data=replace(config.data, fold=0, folds=config.folds))
    config = replace(config, resume=None)
    busy = busy_processors()  # before this process keeps them busy itself
    measured = rehearse(config, quick=quick)
    remember(config, measured, busy)
    return predict(config, measured, busy=busy, folds=folds)


def rehearse(config: Config, *, quick: bool = False) -> Rehearsal:
    """Measure a run of a configuration in this process, whose memory is part of the result.

    Features that are computed on the way are kept where the run looks for them.

    Args:
        config: the configuration of the run.
        quick: try no step with a whole batch.

    Raises:
        UserError: for all that the run itself would refuse.
    """
    started = time.perf_counter()
    config = with_batch_size(config)
    with TemporaryDirectory(prefix="samadapt-plan-") as folder:
        run_dir = Path(folder)
        with peak_memory() as at_start:
            context = open_run(config, run_dir, progress=_silent(run_dir / "log.txt"))
            planner = FeaturePlanner(context)
            scorer = make_scorer(planner, config.eval)
            slices = divide_slices(
                context,
                validate_cases=config.train.validate_cases,
                max_test_cases=config.eval.max_cases,
            )
            scored = [*slices.validation, *slices.test]
            planner.plan(config, train=slices.train, others=scored)
        start_seconds = time.perf_counter() - started
        features = _features(planner, planner.planned.missing if planner.planned else [])
        trains = context.has_trained_parameters
        training, held = None, 0
        if trains:
            training, held = _training(config, planner, scorer, slices, quick=quick)
        return _rehearsal(
            planner,
            slices,
            start=(at_start.peak, start_seconds),
            features=features,
            training=training,
            scoring=_scoring(scorer, scored, config.eval.batch_size, held) if scored else None,
        )


def measure_beginning(
    config: Config, scorer: Scorer, slices: RunSlices, losses: RunLosses, started: float
) -> Rehearsal:
    """Measure a little of a run that begins, in its own process, and change nothing of it.

    Two batches are drawn from a few training slices, their features are computed, and both go
    forward and backward. A few slices are scored. Features and gradients are thrown away. Several
    processes do this together, as they do the run, and return what the first one measured.

    Args:
        config: the configuration of the run.
        scorer: scores the model of the run; its planner has planned the features.
        slices: the slices of the run.
        losses: the training losses.
        started: reading of ``time.perf_counter`` at the start of the run.
    """
    start, random = (peak_memory_bytes(), time.perf_counter() - started), random_states()
    context = replace(scorer.context, progress=_silent(Path(os.devnull)))
    batch, planner = config.train.slices, scorer.planner
    tried = _shortened(config, batch)
    some = sorted(_busiest(context, slices.train, 2 * max(batch, context.dataset.stack)))
    own = FeaturePlanner(context)
    own.plan(tried, train=some, others=[])
    missing, features = own.planned.missing if own.planned else [], None
    own.warm()
    training = _two_passes(tried, replace(scorer, planner=own), RunSlices(some, [], []), losses)
    if planner.missing and missing:
        own.features.store = MemoryStore()  # they are computed again, and the second time is timed
        features = _features(own, missing)
    scored, scoring = [*slices.validation, *slices.test], None
    if scored:
        # A slow model scores two slices; for others more are more exact.
        slow = training.seconds[1] * processes.count() / batch > SLOW_S / 2
        count = processes.from_first(2 if slow else config.eval.batch_size)
        middle, some = _middle(scored, count), _usual_of(context, scored, count)
        own = FeaturePlanner(context)
        own.plan(tried, train=[], others=[*middle, *some])
        tried_scorer = replace(scorer, context=context, planner=own)
        with peak_memory() as found:
            _score(tried_scorer, middle, [context.policy.of_kind(context.policy.main_kind)])
        seconds = _scoring_seconds(tried_scorer, some)
        scoring = Phase.once(scored_by_first(some), found.peak, seconds)
    set_random_states(random)
    return processes.from_first(
        _rehearsal(
            planner, slices, start=start, features=features, training=training, scoring=scoring
        )
    )


def _shortened(config: Config, batch_size: int) -> Config:
    """Return the configuration of two steps, with features in memory and nothing else."""
    options = replace(
        config.train,
        steps=2,
        batch_size=batch_size,
        accumulate=1,
        max_seconds=None,
        max_cpu_seconds=None,
        validate_every=0,
        checkpoint_every=0,
        patience=0,
    )
    return replace(config, train=options, cache=replace(config.cache, where="memory"))


def _middle(refs: Sequence[SliceRef], count: int) -> list[SliceRef]:
    """Return neighbouring slices of the deepest case, or the first ones if no case has so many."""
    own = _deepest(refs)
    start = (len(own) - count) // 2
    return list(refs)[:count] if start < 0 else own[start : start + count]


def _two_passes(config: Config, scorer: Scorer, slices: RunSlices, losses: RunLosses) -> Phase:
    """Measure the gradients of two batches; the seconds are those of the second one."""
    planner, context = scorer.planner, scorer.planner.context
    training = prepare_training(config, planner, scorer, slices, losses)
    injection = training.injection
    first = injection.first_trainable_block
    tail = TrainableTail(context.model, first, background_token=training.background_token)
    recomputing = recomputed(context.model, first) if config.train.recompute else nullcontext()
    injection.set_training(context.model)
    with peak_memory() as found, recomputing, context.precision.products():
        for _ in range(2):
            began = time.perf_counter()
            learn_step(training, tail, [next(training.batches)])
            for parameter in injection.parameters.values():
                parameter.grad = None
            seconds = time.perf_counter() - began
    injection.set_training(context.model, enabled=False)
    # AdamW keeps two numbers for each trained one, and a run the best weights or their average.
    trained = sum(each.nbytes for each in injection.parameters.values())
    copies = 3 + (config.train.ema > 0)
    return Phase.once(config.train.slices, found.peak + copies * trained, seconds)


def _rehearsal(
    planner: FeaturePlanner,
    slices: RunSlices,
    *,
    start: tuple[int, float],
    features: Phase | None,
    training: Phase | None,
    scoring: Phase | None,
) -> Rehearsal:
    """Return what was measured, with the sizes of the run; ``start`` is its peak and seconds."""
    import torch

    context, planned = planner.context, planner.planned
    depths = _depths([*slices.validation, *slices.test])
    return Rehearsal(
        trained=context.injection.trainable,
        total=context.injection.total,
        start_peak=start[0],
        start_seconds=start[1],
        features=features,
        training=training,
        scoring=scoring,
        images=planned.images if planned else 0,
        missing=planner.left_to_compute,
        feature_bytes=planned.bytes_each if planned else 0,
        in_memory=isinstance(planner.features.store, MemoryStore),
        later_bytes=context.dataset.unread_bytes,
        stack=context.dataset.stack,
        train=len(slices.train),
        validation=scored_by_first(slices.validation),
        test=scored_by_first(slices.test),
        deepest=max(depths.values(), default=0),
        passes=1 if context.is_baseline else 2,
        threads=torch.get_num_threads(),
    )


def _silent(log: Path) -> Progress:
    """Return a progress display that shows nothing."""
    from rich.console import Console

    return Progress(Console(file=io.StringIO()), log)


def _features(planner: FeaturePlanner, missing: Sequence[str]) -> Phase | None:
    """Measure a batch of features, after a first one if there are more; None: none is missing."""
    if not missing:
        return None
    # In memory they would count as the process's own.
    count = 2 if isinstance(planner.features.store, MemoryStore) else BATCHES
    starts = range(0, min(len(missing), count * FEATURES_BATCH), FEATURES_BATCH)
    batches = [missing[start : start + FEATURES_BATCH] for start in starts]
    whole = [keys for keys in batches if len(keys) == FEATURES_BATCH] or batches[:1]
    seconds = []
    with peak_memory() as found:
        for keys in whole:
            began = time.perf_counter()
            planner.features.stored(keys)
            seconds.append(time.perf_counter() - began)
    # Each of several processes computes a batch of its own at the same time.
    units = len(whole[0]) * processes.count()
    return Phase.once(units, found.peak, median(seconds[1:] or seconds))


def _training(
    config: Config, planner: FeaturePlanner, scorer: Scorer, slices: RunSlices, *, quick: bool
) -> tuple[Phase, int]:
    """Measure steps with one stack of slices, with two, and with a batch if that fits.

    Every size leaves some memory behind, such as oneDNN's buffers for its shapes. A run has one
    size, so what the sizes before have left is subtracted.

    Returns:
        The measurements, and the bytes that the sizes before the last one have left.
    """
    context = planner.context
    losses = choose_losses(config.loss, context, slices.train)
    stack, batch = context.dataset.stack, config.train.slices
    busiest = _busiest(context, slices.train, max(batch, 2 * stack))

    return_free_memory()
    began_with, held = memory_bytes(), 0

    def step(size: int) -> tuple[int, float]:
        """Return the memory and the seconds of a step, which is the second of its size."""
        nonlocal held
        return_free_memory()
        held = max(0, memory_bytes() - began_with)
        tried = _shortened(config, size)
        own = RunSlices(sorted(busiest[: max(size, 2 * stack)]), [], [])
        apart = FeaturePlanner(context)
        apart.plan(tried, train=own.train, others=[])
        apart.warm()  # so that both steps find them
        with peak_memory() as found:
            train_adapter(tried, apart, scorer, own, losses, None)
        return found.peak - held, _last_step_seconds(context.run_dir)

    sizes = (min(stack, batch), min(2 * stack, batch))
    measured = {size: step(size) for size in dict.fromkeys(sizes)}
    phase = _phase_of(sizes, measured)
    free = psutil.virtual_memory().available + memory_bytes()
    if sizes[1] == batch or quick or phase.peak(batch) > FITS * free:
        return phase, held
    return _phase_of((sizes[1], batch), measured | {batch: step(batch)}), held


def _phase_of(sizes: tuple[int, int], measured: Mapping[int, tuple[int, float]]) -> Phase:
    (low, first), (high, second) = (measured[size] for size in sizes)
    return Phase(sizes, (low, high), (first, second))


def _busiest(context: RunContext, refs: Sequence[SliceRef], count: int) -> list[SliceRef]:
    """Return training slices with the most objects to prompt, those with more of them first.

    They are found among some that are spread out, and their stacks are whole. Without any prompts
    all slices are alike.
    """
    some, samples = list(refs)[:: max(1, len(refs) // SEARCHED)], context.samples
    if context.policy.is_semantic:
        some = some[:: max(1, len(some) // max(count, 1))]
    else:
        read = context.dataset.sample
        some.sort(key=lambda ref: -samples.count_objects(read(ref)))
        if not samples.has_object(read(some[0])):  # a mixture whose objects are rare
            some[:0] = islice((ref for ref in refs if samples.has_object(read(ref))), 1)
    known = set(refs)
    chosen: dict[SliceRef, None] = {}
    for ref in some[: max(count, 1)]:
        stack = samples.stacks.whole([ref])[0] if context.dataset.stack > 1 else [ref]
        chosen.update(dict.fromkeys(sorted(known.intersection(stack))))
    return list(chosen)[: max(count, 1)]


def _last_step_seconds(run_dir: Path) -> float:
    """Return the seconds of the last training step in ``metrics.jsonl``."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    return float(steps[-1]["seconds"])


def _depths(refs: Sequence[SliceRef]) -> dict[str, int]:
    """Return the number of slices of each case."""
    found: dict[str, int] = {}
    for ref in refs:
        found[ref.case] = found.get(ref.case, 0) + 1
    return found


def scored_by_first(refs: Sequence[SliceRef]) -> int:
    """Return how many slices the first process scores; several processes share the cases."""
    return sum(list(_depths(refs).values())[:: processes.count()])


def _deepest(refs: Sequence[SliceRef]) -> list[SliceRef]:
    """Return the slices of the case that has most of them."""
    depths = _depths(refs)
    deepest = max(depths, key=lambda name: depths[name])
    return [ref for ref in refs if ref.case == deepest]


def _usual(
    refs: Sequence[SliceRef], count: int, stacks: Stacks, *, together: bool = False
) -> list[SliceRef]:
    """Return some slices of cases that are neither deep nor flat among the others.

    They are spread over a case of more than twice ``count`` slices, and else are all of a case;
    flatter cases are taken together. Stacks stay whole. With ``together`` they are neighbours in
    the middle, because objects are carried through all slices between those that are scored.
    """
    depths, chosen = _depths(refs), []
    for name in sorted(depths, key=lambda name: depths[name])[len(depths) // 2 :]:
        chosen += [ref for ref in refs if ref.case == name]
        if len(chosen) >= count:
            break
    if len(chosen) <= 2 * count:
        return chosen
    if together:
        return _middle(chosen, count)
    groups, taken = list(stacks.groups(chosen)), -(-count // stacks.size)
    return [ref for i in range(taken) for ref in groups[i * len(groups) // taken]]


def _usual_of(context: RunContext, refs: Sequence[SliceRef], count: int) -> list[SliceRef]:
    """Return ``_usual`` slices as a run sees them."""
    return _usual(refs, count, context.samples.stacks, together=context.policy.clip > 1)


def _scoring(scorer: Scorer, refs: Sequence[SliceRef], batch: int, held: int) -> Phase:
    """Measure the scores of one and of two batches of slices of the deepest case.

    ``held`` is what ``_training`` returned.
    """
    own = _deepest(refs)
    start = max(0, len(own) // 2 - batch)  # the middle of a volume holds the objects
    context = scorer.context
    policies = [one.context.policy for one in scorer.by_kind().values()]
    zero_shot = [] if context.is_baseline else [context.of_kind(policies[0].kind).zero_shot_policy]
    began = time.process_time()  # the same on a loaded machine
    _score(scorer, own[start : start + 1], [policies[0]])  # imports what scores need
    large = 1 if time.process_time() - began > SLOW_S else batch
    sizes = (min(large, len(own)), min(2 * large, len(own)))
    peaks = {}
    for size in dict.fromkeys(sizes):
        with peak_memory() as found:
            _score(scorer, own[start : start + size], [policies[0], *zero_shot])
        peaks[size] = found.peak - held
    low, high = (peaks[size] for size in sizes)
    # What a volume costs beside its slices weighs too much if few of them are scored.
    usual = _usual_of(context, refs, 4 * large if large > 1 else 2)
    each = _scoring_seconds(scorer, usual) / len(usual)
    return Phase(sizes, (low, high), (sizes[0] * each, sizes[1] * each))


def _scoring_seconds(scorer: Scorer, refs: Sequence[SliceRef]) -> float:
    """Return the seconds of the scores of some slices.

    All kinds of prompts count, and the base model too if the run scores it.
    """
    scorer.score_overlap(refs, scorer.context.policy.of_kind(scorer.context.policy.main_kind))
    # Now their features are there, as they are in a run.
    began = time.perf_counter()
    for one in scorer.by_kind().values():
        base = [] if one.context.is_baseline else [one.context.zero_shot_policy]
        _score(one, refs, [one.context.policy, *base])
    return time.perf_counter() - began


def _score(scorer: Scorer, refs: Sequence[SliceRef], policies: Sequence[PromptPolicy]) -> None:
    for policy in policies:
        scorer.score(refs, policy)
