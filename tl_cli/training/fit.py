"""The training loop. It reports events to a callback; it never draws, logs or writes a file."""

import math
import time
from collections.abc import Callable
from itertools import islice

import torch

from tl_cli.errors import DivergedError
from tl_cli.evaluation.calibration import fit_temperature
from tl_cli.evaluation.logits import LabelledLogits
from tl_cli.evaluation.scores import better
from tl_cli.evaluation.task import Task
from tl_cli.interrupts import held
from tl_cli.randomness import Purpose, mixed
from tl_cli.shortage import during
from tl_cli.training.events import (
    Activity,
    EpochEnded,
    LossSampled,
    Noticed,
    Observer,
    PhaseStarted,
    StepEnded,
    StoppedEarly,
)
from tl_cli.training.head_fit import HeadFit
from tl_cli.training.optim import begin_momentum, begin_phase, current_lrs, follow_schedule
from tl_cli.training.phases import Phase
from tl_cli.training.plan import OpenPhase, Plan, observed_logits, open_phase
from tl_cli.training.state import Counters, Partial, TrainState
from tl_cli.training.step import train_step


def fit(plan: Plan, state: TrainState, notify: Observer) -> Counters:
    """Fine-tune ``state.model`` in place, phase by phase, from the step that ``state`` has reached.

    Args:
        plan: the model, its phases and its data.
        notify: called with each event as it happens; its return value is ignored.

    Returns:
        How far the run got, and its best epoch by validation accuracy.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    threads = torch.get_num_threads()
    try:
        for phase in plan.phases:
            if state.counters.epoch < phase.last and not _run_phase(plan, phase, state, notify):
                break
    finally:
        torch.set_num_threads(threads)  # which steps may have changed
    return state.counters


def _run_phase(plan: Plan, phase: Phase, state: TrainState, notify: Observer) -> bool:
    """Run the remaining epochs of a phase; return False where early stopping ended the run.

    The phase's cached features are released when this returns.
    """
    began = time.perf_counter()
    opened = open_phase(plan, phase, notify)
    # Computing features is part of the cost of training.
    state.counters.seconds += time.perf_counter() - began
    begin_momentum(state.optimizer)
    notify(
        PhaseStarted(
            name=phase.name,
            epochs=(phase.first, phase.last),
            steps_per_epoch=opened.steps,
            steps=plan.steps_of(phase),
            step=plan.steps_before(phase),
            ended=state.counters.step,
            into=state.partial.steps if state.partial else 0,
            trainable=sum(p.numel() for p in state.model.parameters() if p.requires_grad),
            frozen=sum(p.numel() for p in state.model.parameters() if not p.requires_grad),
            cached=opened.cached,
            reused=opened.reused,
        )
    )
    if state.counters.epoch < phase.first and state.partial is None:
        begin_phase(state.optimizer, phase, plan.config.schedule)
    for epoch in range(state.counters.epoch + 1, phase.last + 1):
        if _should_stop_early(plan, phase, state.counters):
            notify(StoppedEarly(state.counters.epoch, plan.config.early_stop))
            return False
        _run_epoch(plan, opened, phase, epoch, state, notify)
    return True


@during("while training", "--batch-size", "--input-size", "--precision", "--workers", "--threads", "--device")
def _run_epoch(plan: Plan, opened: OpenPhase, phase: Phase, epoch: int, state: TrainState, notify: Observer) -> None:
    counters, task = state.counters, plan.task
    if state.partial is None or state.partial.epoch != epoch:
        state.partial = Partial.begin(epoch, plan.machine.device)
    partial = state.partial
    started = time.perf_counter() - partial.seconds
    if opened.fit_head is not None:
        _fit_head(plan, opened.fit_head, state, partial, notify)
    else:
        _take_steps(plan, opened, phase, state, partial, notify)
    step = state.step
    train_loss = _finite(float(partial.loss) / partial.images, step, state)
    # After the loss was read, which waits for the GPU's last step.
    trained = time.perf_counter()
    labelled = _validate(plan, opened, "validating", notify)
    accuracy, loss = validated = _scores(task, labelled)
    _finite(loss, step, state)
    average = _validate_average(plan, opened, state, notify)
    averaged = _scores(task, average) if average is not None else (None, None)
    best = better(validated, averaged) or validated
    is_best, calibration = plan.config.keep_epoch == "last" or counters.is_better(*best), None
    if is_best:
        chosen = average if average is not None and best != validated else labelled
        calibration = fit_temperature(chosen, task=task)
    with held():
        # Until every observer is done: the best model is on disk before anything is recorded that calls it the best.
        state.whole = False
        lr_head, lr_backbone = current_lrs(state.optimizer)
        if plan.config.schedule == "plateau":
            state.plateau.step(loss)
        seconds = time.perf_counter() - started
        counters.epoch, counters.step, counters.seconds = epoch, step, counters.seconds + seconds
        state.partial = None
        if is_best:
            counters.best_epoch = epoch
            counters.best_val_accuracy, counters.best_val_loss = best
        ended = EpochEnded(
            epoch=epoch,
            step=step,
            train_loss=train_loss,
            train_accuracy=float(partial.correct) / partial.images,
            val_loss=loss,
            val_accuracy=accuracy,
            lr_head=lr_head,
            lr_backbone=lr_backbone,
            seconds=seconds,
            images_per_second=partial.images / (trained - started),
            is_best=is_best,
            ema_val_accuracy=averaged[0],
            ema_val_loss=averaged[1],
            calibration=calibration,
        )
        notify(ended)
        state.whole = True


def _take_steps(
    plan: Plan, opened: OpenPhase, phase: Phase, state: TrainState, partial: Partial, notify: Observer
) -> None:
    """Take the remaining steps of an epoch."""
    config, step = plan.config, state.step
    log_every = config.log_every or max(1, opened.steps // 50)
    started = time.perf_counter() - partial.seconds
    opened.network.train()
    if state.average is not None:
        state.average.follow()
    before, phase_steps = plan.steps_before(phase), plan.steps_of(phase)
    ended = time.perf_counter()
    for batch in islice(opened.train(partial.epoch, partial.steps), before + phase_steps - step):
        # Signals wait for the end of the step, so that none is half taken.
        with held():
            state.whole = False
            follow_schedule(state.optimizer, phase, config, step - before, phase_steps)
            step += 1
            # Dropout is a function of (seed, step), so a resumed run draws what an uninterrupted one would.
            plan.machine.seed(mixed(config.seed, Purpose.DROPOUT, step))
            result = train_step(opened.network, batch, state, config, opened.objective, step)
            partial.loss += result.loss * len(batch.labels)
            partial.correct += result.correct
            partial.images += len(batch.labels)
            partial.steps += 1
            partial.seconds = time.perf_counter() - started
            state.whole = True
            if step % log_every == 0 or step == 1:
                # .item() waits for the GPU, so the loss is read on few steps only.
                loss = _finite(result.loss.item(), step, state)
                notify(LossSampled(step, partial.epoch, loss, *current_lrs(state.optimizer)))
            notify(StepEnded(step, partial.epoch, len(batch.labels)))
        began, ended = ended, time.perf_counter()
        if opened.watch is not None and (message := opened.watch.after_step(ended - began)):
            notify(Noticed(message))


def _fit_head(
    plan: Plan, fit_head: Callable[[], HeadFit], state: TrainState, partial: Partial, notify: Observer
) -> None:
    """Fit the head as the one step of its phase. A signal may end it: a resumed run begins it again."""
    if partial.steps:
        return  # it is in the checkpoint from which the run was resumed
    started = time.perf_counter() - partial.seconds
    result = fit_head()
    images, step = len(plan.data.parts["train"]), state.step + 1
    with held():
        state.whole = False
        if state.average is not None:
            state.average.restart()
        partial.loss += result.loss * images
        partial.correct += result.correct * images
        partial.images += images
        partial.steps += 1
        partial.seconds = time.perf_counter() - started
        state.whole = True
        notify(LossSampled(step, partial.epoch, result.loss, *current_lrs(state.optimizer)))
        notify(StepEnded(step, partial.epoch, images))


def _validate(plan: Plan, opened: OpenPhase, activity: Activity, notify: Observer) -> LabelledLogits:
    """Return the logits of the validation images."""
    return observed_logits(plan, opened.network, opened.validation(), len(plan.data.parts["val"]), activity, notify)


def _validate_average(plan: Plan, opened: OpenPhase, state: TrainState, notify: Observer) -> LabelledLogits | None:
    """Return the averaged weights' logits of the validation images; None without an average, or where it overflowed."""
    if state.average is None:
        return None
    with state.average.applied():
        # LeViT caches values computed from its weights in eval mode until it trains again.
        opened.network.train()
        labelled = _validate(plan, opened, "validating the average", notify)
    return labelled if math.isfinite(_scores(plan.task, labelled)[1]) else None


def _scores(task: Task, labelled: LabelledLogits) -> tuple[float, float]:
    """Return accuracy (a fraction) and mean loss."""
    correct = task.is_correct(labelled.logits, labelled.labels).double().mean()
    return float(correct), float(task.loss(labelled.logits, labelled.labels))


def _should_stop_early(plan: Plan, phase: Phase, counters: Counters) -> bool:
    """Whether early stopping ends the run: in the last phase only, so that a converged head still gets unfrozen."""
    # A resumed run may have lost its best model; without one there is nothing to stop at.
    if not plan.config.early_stop or phase is not plan.phases[-1] or not counters.best_epoch:
        return False
    return counters.epoch - max(counters.best_epoch, phase.first - 1) >= plan.config.early_stop


def _finite(loss: float, step: int, state: TrainState) -> float:
    if not math.isfinite(loss):
        lr = max(current_lrs(state.optimizer))
        raise DivergedError(f"the loss is {loss} at step {step} (lr {lr:g}); try a lower --lr or --clip-norm 1")
    return loss
