"""The training loop. It never draws, logs or writes a file: it tells an observer what happens."""

import math
import time
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from tl_cli.contract import Calibration
from tl_cli.errors import DivergedError
from tl_cli.evaluation.calibration import fit_temperature
from tl_cli.evaluation.logits import Answers, answer
from tl_cli.evaluation.scores import better
from tl_cli.interrupts import held
from tl_cli.randomness import Purpose, mixed
from tl_cli.shortage import during
from tl_cli.training.config import TrainConfig
from tl_cli.training.events import (
    EpochEnded,
    LossSampled,
    Observer,
    PhaseStarted,
    StepEnded,
    StoppedEarly,
    Worked,
)
from tl_cli.training.phases import Phase, lr_factor
from tl_cli.training.plan import Plan, Stage, open_stage
from tl_cli.training.state import Counters, Partial, TrainState
from tl_cli.training.step import train_step


def fit(plan: Plan, state: TrainState, notify: Observer) -> Counters:
    """Fine-tune ``state.model`` in place, phase by phase, from wherever ``state`` stands.

    Args:
        plan: the model, its phases and its data.
        notify: told each event as it happens; its return value is ignored.

    Returns:
        How far the run went and its best epoch by validation accuracy.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    for phase in plan.phases:
        if state.counters.epoch < phase.last and not _run_phase(plan, phase, state, notify):
            break
    return state.counters


def _run_phase(plan: Plan, phase: Phase, state: TrainState, notify: Observer) -> bool:
    """Run the epochs of a phase that are left; return whether the run goes on. Its features are let go at the end."""
    opened = time.perf_counter()
    stage = open_stage(plan, phase, notify)
    # Computing features is part of what training costs.
    state.counters.seconds += time.perf_counter() - opened
    _begin_momentum(state.optimizer)
    before = plan.steps_before(phase)
    notify(
        PhaseStarted(
            name=phase.name,
            epochs=(phase.first, phase.last),
            steps_per_epoch=stage.steps,
            steps=plan.steps_of(phase),
            step=before,
            ended=state.counters.step,
            into=state.partial.steps if state.partial else 0,
            trainable=sum(p.numel() for p in state.model.parameters() if p.requires_grad),
            frozen=sum(p.numel() for p in state.model.parameters() if not p.requires_grad),
            cached=stage.cached,
            found=stage.found,
        )
    )
    if state.counters.epoch < phase.first and state.partial is None:
        _begin(state, phase, plan.config)
    for epoch in range(state.counters.epoch + 1, phase.last + 1):
        if _is_enough(plan, phase, state.counters):
            notify(StoppedEarly(state.counters.epoch, plan.config.early_stop))
            return False
        _run_epoch(plan, stage, phase, epoch, state, before, notify)
    return True


@during("while training", "--batch-size", "--input-size", "--precision", "--workers", "--threads", "--device")
def _run_epoch(
    plan: Plan, stage: Stage, phase: Phase, epoch: int, state: TrainState, before: int, notify: Observer
) -> None:
    config = plan.config
    log_every = config.log_every or max(1, stage.steps // 50)
    if state.partial is None or state.partial.epoch != epoch:
        state.partial = Partial.begin(epoch, plan.machine.device)
    partial = state.partial
    started = time.perf_counter() - partial.seconds
    stage.network.train()
    if state.average is not None:
        state.average.follow()
    step = state.step
    total_steps = plan.steps_of(phase)
    for batch in islice(stage.train(epoch, partial.steps), before + total_steps - step):
        # A step is taken or not: a signal waits for its end.
        with held():
            state.whole = False
            _schedule(config, state, phase, step - before, total_steps)
            step += 1
            # Dropout is a function of (seed, step), so a resumed run draws what the whole one would have.
            plan.machine.seed(mixed(config.seed, Purpose.DROPOUT, step))
            stepped = train_step(stage.network, batch, state, config, stage.objective, step)
            partial.loss += stepped.loss * len(batch.labels)
            partial.correct += stepped.correct
            partial.images += len(batch.labels)
            partial.steps += 1
            partial.seconds = time.perf_counter() - started
            state.whole = True
            if step % log_every == 0 or step == 1:
                # .item() waits for the GPU, so the loss is read on few steps only.
                notify(_sample(step, epoch, stepped.loss.item(), state))
            notify(StepEnded(step, epoch, len(batch.labels)))
    train_loss = _finite(float(partial.loss) / partial.images, step, state)
    # After the loss was read, for which a GPU has to be done.
    trained = time.perf_counter()
    total = len(plan.data.parts["val"])
    answers = answer(
        stage.network,
        stage.validation(),
        lambda done: notify(Worked("validating", done, total)),
        at_once=plan.machine.at_once,
    )
    validated = _judge(answers)
    _finite(validated[1], step, state)
    average = _answers_of_average(plan, stage, state, notify)
    averaged = _judge(average) if average is not None else (None, None)
    judged = better(validated, averaged) or validated
    calibration = None
    if state.counters.is_better(*judged):
        calibration = fit_temperature(average if average is not None and judged != validated else answers)
    with held():
        _end_epoch(plan, phase, state, notify, train_loss, validated, averaged, calibration, (started, trained))


def _end_epoch(
    plan: Plan,
    phase: Phase,
    state: TrainState,
    notify: Observer,
    train_loss: float,
    validated: tuple[float, float],
    averaged: tuple[float | None, float | None],
    calibration: Calibration | None,
    since: tuple[float, float],
) -> None:
    """Count an epoch that is trained and validated, and tell of it.

    Args:
        validated: accuracy and loss.
        averaged: the same of the averaged weights.
        calibration: where the epoch is the best so far.
        since: when the epoch began, and when its steps were done, by the clock.
    """
    counters, partial = state.counters, state.partial
    assert partial is not None
    # Until all that is told has done its work: the best model is on the disk before anything says that it is the best.
    state.whole = False
    started, trained = since
    lr_head, lr_backbone = _lrs(state)
    if plan.config.schedule == "plateau":
        state.plateau.step(validated[1])
    seconds = time.perf_counter() - started
    step = state.step
    counters.epoch, counters.step, counters.seconds = partial.epoch, step, counters.seconds + seconds
    state.partial = None
    best = better(validated, averaged) or validated
    is_best = counters.is_better(*best)
    if is_best:
        counters.best_epoch = partial.epoch
        counters.best_val_accuracy, counters.best_val_loss = best
    ended = EpochEnded(
        epoch=partial.epoch,
        step=step,
        train_loss=train_loss,
        train_accuracy=float(partial.correct) / partial.images,
        val_loss=validated[1],
        val_accuracy=validated[0],
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


def _judge(answers: Answers) -> tuple[float, float]:
    """Return accuracy, a fraction, and mean cross-entropy."""
    correct = (answers.logits.argmax(1) == answers.labels).double().mean()
    return float(correct), float(F.cross_entropy(answers.logits, answers.labels))


def _answers_of_average(plan: Plan, stage: Stage, state: TrainState, notify: Observer) -> Answers | None:
    """Return what the averaged weights answer to the validation images; None where none are kept."""
    if state.average is None:
        return None
    total = len(plan.data.parts["val"])
    with state.average.applied():
        # LeViT keeps what it computed from its weights in eval mode until it trains again.
        stage.network.train()
        answers = answer(
            stage.network,
            stage.validation(),
            lambda done: notify(Worked("validating the average", done, total)),
            at_once=plan.machine.at_once,
        )
    # An average that has overflowed is never the better one.
    return answers if math.isfinite(_judge(answers)[1]) else None


def _is_enough(plan: Plan, phase: Phase, counters: Counters) -> bool:
    """Whether early stopping ends the run; a head that has learned all it can must not keep the rest from training."""
    # Without a best model there is none to stop at: a run that goes on may have lost it.
    if not plan.config.early_stop or phase is not plan.phases[-1] or not counters.best_epoch:
        return False
    return counters.epoch - max(counters.best_epoch, phase.first - 1) >= plan.config.early_stop


def _schedule(config: TrainConfig, state: TrainState, phase: Phase, step: int, steps: int) -> None:
    if config.schedule != "plateau":
        _set_lr(state, phase, lr_factor(config.schedule, config.warmup, step, steps))


def _begin(state: TrainState, phase: Phase, config: TrainConfig) -> None:
    """Set the rates of a phase that begins; plateau goes on, from stage to stage, where it was."""
    if config.schedule != "plateau" or phase.stage <= 1:
        _set_lr(state, phase, 1.0)
        return
    groups = state.optimizer.param_groups
    lowered = max(group["lr"] / peak for group in groups if group["lr"] and (peak := _peak(group, phase)))
    _set_lr(state, phase, lowered)


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let what trains now for the first time begin with a momentum of zero: torch's fused SGD takes all or none."""
    for group in optimizer.param_groups:
        if not group.get("momentum"):
            continue
        for parameter in group["params"]:
            if parameter.requires_grad and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _set_lr(state: TrainState, phase: Phase, factor: float) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = factor * _peak(group, phase)


def _peak(group: dict[str, Any], phase: Phase) -> float:
    """Return the phase's highest rate for the parameters of a group; 0 where they are frozen."""
    if not any(parameter.requires_grad for parameter in group["params"]):
        return 0.0
    return float(phase.lr_head if group["is_head"] else phase.lr_backbone * group["share"])


def _lrs(state: TrainState) -> tuple[float, float]:
    """Return the rates of the head and of the backbone's highest layer that trains; 0 where none does."""
    groups = state.optimizer.param_groups
    rates = {part: [float(group["lr"]) for group in groups if group["is_head"] is part] for part in (True, False)}
    return max(rates[True]), max(rates[False], default=0.0)


def _sample(step: int, epoch: int, loss: float, state: TrainState) -> LossSampled:
    return LossSampled(step, epoch, _finite(loss, step, state), *_lrs(state))


def _finite(loss: float, step: int, state: TrainState) -> float:
    if not math.isfinite(loss):
        lr = max(_lrs(state))
        raise DivergedError(f"the loss is {loss} at step {step} (lr {lr:g}); try a lower --lr or --clip-norm 1")
    return loss
