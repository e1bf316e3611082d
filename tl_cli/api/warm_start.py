"""From ``--weights`` to the saved model that a training starts from."""

from tl_cli.api.model_lookup import find_model_folder, find_to_read
from tl_cli.api.observer import Observer
from tl_cli.errors import RunNotFoundError, UsageError
from tl_cli.models.bundle import read_card
from tl_cli.models.zoo import registry
from tl_cli.models.zoo.weights import is_path
from tl_cli.training.config import Given


def with_model_of_weights(given: Given, tracking_uri: str | None, observer: Observer) -> Given:
    """Return the settings with a model: that of the run or saved model in ``weights`` where no model is given.

    Raises:
        UsageError: no model is given, and the weights are not those of a run or saved model.
    """
    weights = given.settings.weights
    if given.settings.model or "weights" not in given:
        return given
    message = f"--weights {weights} does not determine the architecture; give a MODEL, such as efficientnet_lite0"
    if weights in ("none", "default") or (is_path(weights) and find_model_folder(weights) is None):
        raise UsageError(message)
    try:
        folder = find_to_read(weights, tracking_uri, observer.warn).folder
    except RunNotFoundError as error:
        raise UsageError(f"{message} ({error})") from error
    return given.replaced(model=read_card(folder).architecture, weights=str(folder))


def with_saved_weights(given: Given, tracking_uri: str | None, observer: Observer) -> Given:
    """Return the settings with the folder of a saved model in place of the run that ``weights`` names.

    Raises:
        RunNotFoundError: the run or model that an address names does not exist.
    """
    weights = given.settings.weights
    if "weights" not in given or registry.is_known_weights(given.model, weights):
        return given
    try:
        return given.replaced(weights=str(find_to_read(weights, tracking_uri, observer.warn).folder))
    except RunNotFoundError:
        if ":/" in weights:
            raise
        # The zoo names the weights that exist.
        return given
