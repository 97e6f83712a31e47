"""Checkpoints on a model hub: downloaded by name, uploaded as the folder that `save_pretrained` writes.

Only ``huggingface_hub`` (the extra ``hub``) uses the network, and only when a repository is named. The
address is that of ``HF_ENDPOINT``, else huggingface.co. A token is passed on and never written or logged;
without one ``huggingface_hub`` uses that of its login. The files are JSON and safetensors: nothing in them is
run.
"""

from __future__ import annotations

import importlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from deepSTRF._files import MANIFEST
from deepSTRF._optional import require
from deepSTRF.models.io.checkpoint import CARD_FILE, CONFIG_FILE, METADATA_FILE, WEIGHTS_FILE, save_checkpoint

__all__ = ["download_checkpoint", "is_repo_id", "locate_checkpoint", "push_model"]

#: Address of the hub when huggingface_hub's own default is not meant.
ENDPOINT_VARIABLE = "HF_ENDPOINT"
#: Nothing else of a repository is fetched.
_FILES = (CONFIG_FILE, WEIGHTS_FILE, METADATA_FILE, CARD_FILE, MANIFEST)
#: "user/name"; each part begins and ends with a letter, digit or underscore.
_REPO_ID = re.compile(r"\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", flags=re.ASCII)
_DENIED = (401, 403)


def is_repo_id(text: object) -> bool:
    """Whether ``text`` has the form ``"user/name"``."""
    return isinstance(text, str) and _REPO_ID.fullmatch(text) is not None


def locate_checkpoint(
    repo_or_path: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return the folder of a checkpoint: the local one when it exists, else a copy of the repository."""
    if Path(repo_or_path).is_dir():
        return Path(repo_or_path)
    if is_repo_id(repo_or_path):
        return download_checkpoint(str(repo_or_path), cache_dir=cache_dir, revision=revision, token=token)
    raise FileNotFoundError(
        f"there is no checkpoint folder {str(repo_or_path)!r}; give the folder that save_pretrained wrote, "
        'or the name of a repository as "user/name"'
    )


def download_checkpoint(
    repo_id: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Fetch configuration, weights, card and metadata of a repository; what is there already stays."""
    _check_repo_id(repo_id)
    hub = _require_hub(repo_id)
    with _plain_errors(hub, repo_id, revision):
        copy = hub.snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            allow_patterns=list(_FILES),
            endpoint=_endpoint(),
        )
    return Path(copy)


def push_model(
    model: nn.Module,
    repo_id: str,
    *,
    metadata: Any = None,
    model_card: str | None = None,
    private: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Save a model and send it to a repository, which is made when missing."""
    _check_repo_id(repo_id)
    hub = _require_hub(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(model, folder, metadata=metadata, model_card=model_card, source=repo_id)
        api = hub.HfApi(endpoint=_endpoint(), token=token)
        with _plain_errors(hub, repo_id, None):
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                delete_patterns=list(_FILES),  # of an earlier save; what is sent now is not deleted
                commit_message=commit_message or f"Save {type(model).__name__} with deepSTRF",
            )
    return str(address)


def _check_repo_id(repo_id: object) -> None:
    if not is_repo_id(repo_id):
        raise ValueError(f'a repository is named "user/name", got {repo_id!r}')


def _endpoint() -> str | None:
    """The address in the environment now; huggingface_hub itself reads it once, when it is imported."""
    return os.environ.get(ENDPOINT_VARIABLE) or None


def _require_hub(repo_id: str) -> ModuleType:
    try:
        return require("huggingface_hub", extra="hub")
    except ImportError as error:
        raise ImportError(
            f"{repo_id!r} is no folder here, and for a repository of that name {error}"
        ) from error


@contextmanager
def _plain_errors(hub: ModuleType, repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of huggingface_hub into those that a user of files knows."""
    errors = importlib.import_module(f"{hub.__name__}.errors")
    where = f"{repo_id!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"neither a folder nor a repository that this token may read is called {where}; check the name, "
            "and log in (hf auth login) or give token=... when it is private"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(f"the hub cannot be reached, and there is no copy of {where} here") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status not in _DENIED:
            raise
        raise PermissionError(
            f"the hub refused access to {where} (status {status}): log in (hf auth login) or give a token "
            "with the rights this needs"
        ) from error
