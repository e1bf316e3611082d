"""The plan of a run that is resumed, checked against what the run was started with."""

import shlex
from collections.abc import Iterator, Mapping

from tl_cli.api.observer import Observer
from tl_cli.contract import ModelCard
from tl_cli.data.dataset import changed_parts, check_exists
from tl_cli.errors import TlError, UsageError, without_secrets
from tl_cli.io.atomic import write_text
from tl_cli.models import bundle
from tl_cli.tracking.destination import check_resumable
from tl_cli.tracking.recorded import SOUP_TAG, Run, describe_run, is_parent, short_id
from tl_cli.tracking.store import Store
from tl_cli.tracking.sync import sync
from tl_cli.training.config import Given, Settings, as_toml, recorded_config, settings_of, values_of
from tl_cli.training.plan import Plan
from tl_cli.training.state import CARD_FILE, CONFIG_FILE

# Settings of where a run computes and reads, which do not change its results.
_CHANGEABLE = {"data", "data_dir", "workers", "device", "checkpoint_every"}


def find_run(store: Store, name: str) -> Run:
    """Return the run to resume.

    Raises:
        UsageError: the run is a comparison or was made by another version.
        RunNotFoundError: no run, or more than one, has this name.
    """
    run = store.find(name)
    if is_parent(run):
        raise UsageError(
            f"{describe_run(run)} is a comparison and cannot be resumed; tl compare {short_id(run)} shows it"
        )
    if SOUP_TAG in run.data.tags:
        raise UsageError(f"{describe_run(run)} is the mean of other runs and cannot be resumed; make it again: tl soup")
    check_resumable(run)
    return run


def send_offline_record(store: Store, run: Run, observer: Observer) -> Run:
    """Send what was recorded offline to the store; return the run as it is recorded then."""
    try:
        sync(store, run)
        (run,) = store.reload([run])
    except TlError as error:
        observer.warn(f"{error}; trying again at the end")
    return run


def recorded_settings(store: Store, run: Run, settings: Settings, tracking_uri: str | None) -> tuple[Given, ModelCard]:
    """Return the settings of a run, with those that may change, and its model card.

    Raises:
        UsageError: the run is complete, its state is not here, or a setting is given that cannot change.
    """
    flags = values_of(settings)
    if run.info.status == "FINISHED":
        raise UsageError(
            f"the run {describe_run(run)} is complete, and --resume continues only interrupted runs; to train its "
            f"model further, start a new run from its weights:\n{_continue_command(store, run, flags, tracking_uri)}"
        )
    extra = sorted(set(flags) - _CHANGEABLE)
    if extra:
        listed = ", ".join("--" + key.replace("_", "-") for key in extra)
        raise UsageError(f"--resume takes its settings from the run; leave out {listed.replace('--model', 'MODEL')}")
    folder = store.state_folder(run)
    if not (folder / CARD_FILE).exists():
        raise UsageError(
            f"there is no state of the run {run.info.run_name} in {folder}: it ended before its training began, "
            "or was started in another folder"
        )
    # The card is read, not the TOML file beside it, which a person may have edited.
    card = bundle.read_card(folder, CARD_FILE)
    return Given.of(flags, settings_of(recorded_config(card.config))), card


def check_config_file(store: Store, run: Run, card: ModelCard, observer: Observer) -> None:
    """Write the run's config file if it is missing, and warn if it was edited."""
    path, text = store.state_folder(run) / CONFIG_FILE, as_toml(settings_of(card.config))
    if not path.exists():
        write_text(path, text)
    elif path.read_bytes() != text.encode():
        observer.warn(f"{path} has changed; the run continues with its original settings")


def check_data_exist(given: Given) -> None:
    """Refuse to resume a run whose data are gone, unless new ``data`` are given."""
    if "data" not in given.flags:
        check_exists(given.settings.data)


def check_same_images(plan: Plan, run: Run, card: ModelCard, observer: Observer) -> None:
    """Refuse changed training or validation images; warn of changed test images.

    Raises:
        UsageError: training or validation images are not those that the run was started with.
    """
    changed = set(changed_parts(card.data, plan.data))
    if changed - {"test"}:
        raise UsageError(
            f"the {' and '.join(sorted(changed))} images have changed since the run began; start a new run"
        )
    if changed and "test" not in plan.data.parts:
        observer.warn(f"the test images are missing: no test accuracy is recorded until tl eval {short_id(run)}")
    elif changed:
        observer.warn("the test images have changed since the run began; the current ones will be used")


def _continue_command(store: Store, run: Run, flags: Mapping[str, object], tracking_uri: str | None) -> str:
    """Return the command of a new run that continues a finished one, with its settings and these flags."""
    config, params, given = store.state_folder(run) / CONFIG_FILE, run.data.params, dict(flags)
    settings: dict[str, object] = {"weights": short_id(run)}
    if config.exists():
        settings["config"] = config
    elif "data" in params:
        settings |= {"data": params["data"], "input_size": params.get("input_size", 224)}
    settings.update(_remaining(given, params))
    # The head is trained already, so everything trains from the start.
    lr = given.pop("unfreeze_lr", params.get("unfreeze_lr"))
    settings |= {"freeze_epochs": 0, **({"lr": lr} if lr else {})}
    if params.get("unfreeze_stages", "1") != "1":
        settings["unfreeze_stages"] = 1
    if params.get("head") == "new":
        settings["head"] = "keep"
    settings |= {key: value for key, value in given.items() if key not in ("model", "weights", "epochs", "steps")}
    if tracking_uri:
        settings["tracking_uri"] = without_secrets(tracking_uri)
    return shlex.join(["tl", "train", *_as_flags(settings)])


def _remaining(given: Mapping[str, object], params: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Yield the epochs or steps that are left; as with --resume, the total is given."""
    for length in ("epochs", "steps"):
        total, done = given.get(length), params.get(length, "")
        if isinstance(total, int):
            yield length, total - int(done) if done.isdecimal() and int(done) < total else total


def _as_flags(settings: Mapping[str, object]) -> Iterator[str]:
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield f"--{flag}"
            yield from map(str, value if isinstance(value, tuple) else (value,))
