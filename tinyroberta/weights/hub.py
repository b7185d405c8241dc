"""From a path or a Hub repository's name to a folder on this disk."""

import re
import warnings
from pathlib import Path
from typing import Any

from ..errors import Error
from .checkpoint import FORMATS, Format
from .safetensors import shard_names

SAFETENSORS, *OTHERS = (form for form in FORMATS if "*" not in form.files[0])
TEXT = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
REPOSITORY = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")


def checkpoint_folder(path_or_repo: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a checkpoint: `path_or_repo` itself, or what huggingface_hub has downloaded of that repository.

    HF_HOME and HF_HUB_OFFLINE are honoured by huggingface_hub. Where main holds no safetensors and no revision was named, the
    pull request that holds them (refs/pr/N) is looked for, named in a warning and taken; else the next of FORMATS. Raises Error
    where the folder does not exist, huggingface_hub is not installed, or the repository, revision or its weights cannot be had.
    """
    path = Path(path_or_repo).expanduser()
    if path.is_dir() or (path.suffix == ".pt" and path.is_file()):
        return path
    if path.exists():
        raise Error(f"{path} is a file; give the folder that holds config.json and model.safetensors (or a fairseq .pt file)")
    name = str(path_or_repo)
    if name.startswith((".", "~", "/")) or name.count("/") != 1 or not REPOSITORY.fullmatch(name):
        raise Error(f"there is no folder {name}, and it is not the name of a Hub repository (organisation/name)")
    try:
        import huggingface_hub
    except ImportError as error:
        raise Error(f"there is no folder {name}; to load it from the Hub, pip install 'tinyroberta[hub]'") from error
    return _download(huggingface_hub, name, revision, weights)


def _download(hub: Any, name: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable = False

    def file(filename: str, at: str | None) -> Path | None:
        nonlocal unreachable
        try:
            return Path(hub.hf_hub_download(name, filename, revision=at))
        except (LocalEntryNotFoundError, OfflineModeIsEnabled):
            unreachable = True
        except EntryNotFoundError:
            pass
        return None

    def holds(form: Format, at: str | None) -> bool:
        return any(file(filename, at) is not None for filename in form.files)

    def pull_requests() -> list[str]:
        try:
            pulls = hub.HfApi().list_repo_refs(name, include_pull_requests=True).pull_requests or []
            references = [pull.ref for pull in pulls]
        except (OfflineModeIsEnabled, OSError):
            cache = Path(hub.constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs"
            references = [str(path.relative_to(cache)) for path in cache.glob("refs/pr/*")]
        numbered = [reference for reference in references if re.fullmatch(r"refs/pr/\d+", reference)]
        return sorted(numbered, key=lambda reference: int(reference.rsplit("/", 1)[1]), reverse=True)

    def missing(what: str, at: str | None) -> Error:
        if unreachable:
            return Error(f"{name}: {what} is not in the local cache, and the Hub cannot be reached or HF_HUB_OFFLINE is set")
        return Error(f"{name} holds no {what} at revision {at or 'main'}")

    try:
        form = SAFETENSORS
        if weights and not holds(form, revision):
            pulls = pull_requests() if revision is None else []
            pull = next((reference for reference in pulls if holds(form, reference)), None)
            if pull is not None:
                warnings.warn(f"{name} has no safetensors on main; taking them from {pull}", stacklevel=4)
                revision = pull
            elif (other := next((other for other in OTHERS if holds(other, revision)), None)) is not None:
                form = other
            else:
                raise missing("model.safetensors", revision)
        config = file("config.json", revision)
        if config is None:
            raise missing("config.json", revision)
        if weights:
            if file(form.files[0], revision) is None:
                index = file(form.files[1], revision)
                if index is None:
                    raise missing(form.files[0], revision)
                for shard in shard_names(index):
                    if file(shard, revision) is None:
                        raise missing(shard, revision)
            for filename in TEXT:
                file(filename, revision)
        return config.parent
    except GatedRepoError as error:
        raise Error(f"{name} is gated: accept its terms on the Hub, then log in with `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise Error(f"{name} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise Error(f"there is no folder {name} and no such repository on the Hub, or it is private: check the name") from error
    except (HfHubHTTPError, OSError) as error:
        raise Error(f"cannot download {name}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
