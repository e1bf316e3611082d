"""Prints the plan before a run and the results after it."""

from collections.abc import Sequence
from functools import partial
from statistics import median_high

from rich.console import Console
from rich.text import Text

from tl_cli.evaluation.classification import class_scores
from tl_cli.inspection.freeze_plan import freeze_plan
from tl_cli.training.forecast import Estimate
from tl_cli.training.history import History
from tl_cli.training.optim import lr_factor
from tl_cli.training.outcome import Outcome
from tl_cli.training.plan import Plan
from tl_cli.ui import panels
from tl_cli.ui.panels import TRAIN_COLOUR, Line, Panel
from tl_cli.ui.terminal import charts, tables
from tl_cli.ui.terminal.charts import Canvas
from tl_cli.ui.terminal.console import plain
from tl_cli.ui.terminal.formats import format_seconds
from tl_cli.ui.terminal.layout import facts_grid, print_section


def print_plan(console: Console, plan: Plan) -> None:
    """Print the model, the data, and which parts of the model train in each phase."""
    counts = ", ".join(f"{len(images):,} {name}" for name, images in plan.data.parts.items())
    preprocessing = plan.classifier.preprocessing
    shape = {"center": "", "squash": ", squashed", "border": ", padded"}[preprocessing.crop_mode]
    counts += f", at {preprocessing.crop} px{shape}"
    console.print(plain(f"{plan.config.model}  {plan.classifier.weights.name}", "bold"))
    console.print(plain(f"{plan.data.spec.source}: {len(plan.data.classes)} classes, {counts}"))
    if plan.classifier.head_start is not None:
        console.print(plain(f"head: {plan.classifier.head_start.reason}", limit=4000))
    for note in plan.classifier.notes:
        console.print(plain(f"weights: {note}", limit=4000))
    notes = [
        *plan.data.notes,
        *([] if "test" in plan.data.parts else ["no test split; test accuracy will not be reported"]),
        *([] if plan.crop_note is None else [plan.crop_note]),
        *plan.cache_notes,
    ]
    for note in notes:
        console.print(plain(f"note: {note}", "yellow"))
    console.print()
    parts = freeze_plan(plan.classifier, [partial(plan.strategy.freeze_for, phase) for phase in plan.phases])
    console.print(tables.freeze_table(parts, plan.phases, console.width))
    for line in _refinements(plan):
        console.print(plain(line, "dim"))
    console.print()


def _refinements(plan: Plan) -> list[str]:
    """Return lines that complete the table of parts: frozen layers, layer decay, effects of cached features."""
    config, strategy, lines = plan.config, plan.strategy, []
    if strategy.frozen_layers:
        count = strategy.frozen_layers
        lines.append(f"always frozen: the first {count} of {len(strategy.layers)} layers, up to {config.freeze_until}")
    if config.layer_decay < 1 and len(plan.phases) > 1 - (config.freeze_epochs == 0):
        lowest = strategy.layers[strategy.frozen_layers]
        above = len(strategy.layers) - 2 - strategy.frozen_layers
        rate = config.unfreeze_lr * config.layer_decay**above
        lines.append(
            f"layer decay {config.layer_decay:g}: from {config.unfreeze_lr:g} down to {rate:.2g} at {lowest.name}"
        )
    if plan.time_note:
        lines.append(f"time {config.time}: {plan.time_note}")
    if plan.probed:
        lines.append(f"probe: {plan.machine.describe()} ({plan.probed})")
    if plan.classifier.stages:
        seen = ", ".join(stage.module for stage in plan.classifier.stages)
        lines.append(f"the head sees its own input and the means of {seen}")
    lines += [
        f"{phase.title} {'is a logistic regression' if plan.solves(phase) else 'trains'} on "
        f"{plan.cached[phase.first].describe()}"
        for phase in plan.phases
        if plan.uses_cache(phase)
    ]
    names = ", ".join(config.image_changes)
    if names and any(phase.name == "head" and plan.uses_cache(phase) for phase in plan.phases):
        lines.append(f"{names}: not applied in the head phase, which trains on cached features")
    return lines


def print_dry_run(console: Console, plan: Plan, forecast: Estimate) -> None:
    """Print each setting with its reason, the learning-rate schedule and a forecast of time and memory."""
    console.print(tables.settings_table(plan.resolved))
    if any(phase.lr_head for phase in plan.phases):
        canvas = Canvas.on(console, min(console.width, 100), 10)
        print_section(console, "learning rate of the head by step")
        if plan.config.schedule == "plateau":
            console.print(Text("lowered when validation stops improving; before that:", style="dim"))
        console.print(charts.draw(Panel("learning rate", [Line(_lr_points(plan), TRAIN_COLOUR)]), canvas))
    console.print()
    width = max(map(len, forecast.seconds)) + 1
    for name, seconds in forecast.seconds.items():
        console.print(f"{name:<{width}} about {format_seconds(seconds)}")
    console.print(f"{'total':<{width}} about {format_seconds(forecast.total)}", style="bold")
    console.print(f"{'memory':<{width}} about {forecast.memory_bytes / 1e9:.1f} GB on {plan.machine.describe()}")
    console.print("dry run: nothing was trained or recorded", style="dim")


def print_outcome(console: Console, plan: Plan, history: History, outcome: Outcome) -> None:
    """Print the curves and the results."""
    width = min(console.width, 120)
    both = width >= 72
    canvas = Canvas.on(console, (width - 2) // 2 if both else width, 10)
    if not console.quiet:
        shown = [panels.loss_by_step([history]), panels.accuracy_by_epoch([history])]
        console.print(charts.arrange(shown, canvas, 1 + both, [charts.heading(panel, canvas) for panel in shown]))
        for line in charts.mark_lines(shown, canvas):
            console.print(line)
    console.print(facts_grid((name, Text(value, style)) for name, value, style in _results(history, outcome)))
    if outcome.test is not None:
        table = tables.class_table(class_scores(outcome.test.confusion), plan.data.classes, console)
        print_section(console, "accuracy by class, weakest first", table)


def _results(history: History, outcome: Outcome) -> list[tuple[str, str, str]]:
    """Return the results of a training: name, value and style."""
    best, counters = history.best, outcome.counters
    lines: list[tuple[str, str, str]] = []
    if outcome.test is not None:
        lines.append(("test accuracy", tables.format_accuracy(outcome.test.accuracy), "bold green"))
        lines.append(("", f"95% interval, {outcome.test.accuracy.count:,} images; test set used once", "dim"))
    if outcome.tta_gain is not None:
        lines.append(("", tables.format_mirror_gain(outcome.tta_gain), "dim"))
    if best is not None:
        lines.append(
            ("val accuracy", f"{counters.best_val_accuracy:.2%}, epoch {counters.best_epoch} ({history.keep})", "")
        )
        if not best.lr_backbone and any(point.lr_backbone for point in history.epochs):
            lines.append(("", "reached before unfreezing; a lower --unfreeze-lr or more epochs may improve it", "dim"))
    if outcome.clean_train is not None:
        accuracy = tables.format_accuracy(outcome.clean_train.accuracy)
        lines.append(("train accuracy", f"{accuracy}  eval mode, no augmentation", ""))
    if outcome.gap is not None:
        lines.append(("gap", f"{100 * outcome.gap:+.2f} points (train - test)", ""))
    speeds = [epoch.images_per_second for epoch in history.epochs if epoch.images_per_second and epoch.lr_backbone]
    speed = f", {median_high(speeds):,.0f} images/s in fine-tuning" if speeds else ""
    lines.append(("time", f"{format_seconds(counters.seconds)} of training{speed}", ""))
    return lines


def print_next(console: Console, done: str, commands: Sequence[str]) -> None:
    """Print what was done and the commands to try next."""
    console.print(Text(f"\n{done}. Next:"), soft_wrap=True)
    for command in commands:
        console.print(Text(f"  {command}", style="mark"), soft_wrap=True)


def _lr_points(plan: Plan) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for phase in plan.phases:
        before, total = plan.steps_before(phase), plan.steps_of(phase)
        for step in range(0, total, max(1, total // 200)):
            factor = lr_factor(plan.config.schedule, plan.config.warmup, step, total)
            points.append((float(before + step + 1), phase.lr_head * factor))
    return points
