"""From a path or a Hub repository's name to a folder on this disk."""

import re
import warnings
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import Error
from .checkpoint import FORMATS, SUFFIXES, is_weights
from .safetensors import shard_names

SAFETENSORS = FORMATS[0]
VOCABULARIES = ("vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "vocab.txt", "bpe.codes")
TEXT = (
    "tokenizer.json", *VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "dict.txt",
)  # fmt: skip
SETTINGS = ("generation_config.json",)
FILES = ("config.json", *(file for form in FORMATS for file in form.files), *SETTINGS, *TEXT)
SMALL = 64 * 2**20  # bytes: what is larger beside a checkpoint is data or another copy of its weights
WEIGHTS = (  # of other libraries, or of formats that are not read here
    ".distcp", ".engine", ".gguf", ".hdf5", ".mlmodel", ".npy", ".npz", ".onnx", ".onnx_data", ".ot", ".pb", ".pickle", ".pkl",
    ".tflite",
)  # fmt: skip
OWNERS = {  # of repositories that were first published without one; the Hub redirects, a cache knows either name
    "camembert-base": "almanach",
    "distilroberta-base": "distilbert",
    "roberta-base": "FacebookAI",
    "roberta-base-openai-detector": "openai-community",
    "roberta-large": "FacebookAI",
    "roberta-large-mnli": "FacebookAI",
    "roberta-large-openai-detector": "openai-community",
    "xlm-roberta-base": "FacebookAI",
    "xlm-roberta-large": "FacebookAI",
    "xlm-roberta-large-finetuned-conll02-dutch": "FacebookAI",
    "xlm-roberta-large-finetuned-conll02-spanish": "FacebookAI",
    "xlm-roberta-large-finetuned-conll03-english": "FacebookAI",
    "xlm-roberta-large-finetuned-conll03-german": "FacebookAI",
}
OF_MODULES = re.compile(r"[1-9]\d*_\w+/|(sparse|colbert)_linear\.(pt|safetensors)$")
REPOSITORY = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")


def on_disk(path_or_repo: str | Path) -> bool:
    """Whether a checkpoint is given as a folder or file of this disk; of what is no path at all, no."""
    try:
        return Path(path_or_repo).expanduser().exists()
    except (OSError, RuntimeError, TypeError, ValueError):
        return False


def is_beside(name: str) -> bool:
    """Whether a file of a repository, by its path there, goes with the model: all but weights and what is hidden.

    The weights of a sentence-transformers module, in a folder such as 2_Dense, and BGE-M3's two layers are no copy of its own.
    """
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return False
    return not (is_weights(path) or path.suffix in WEIGHTS) or bool(OF_MODULES.match(name))


def checkpoint_folder(path_or_repo: str | Path, revision: str | None = None, weights: bool = True, beside: bool = False) -> Path:
    """The folder (or file) of a checkpoint: `path_or_repo` itself, or what huggingface_hub has downloaded of that repository.

    HF_HOME and HF_HUB_OFFLINE are honoured by huggingface_hub. Where main holds no safetensors and no revision was named, the
    pull request that holds them (refs/pr/N) is looked for, named in a warning and taken; else the next of FORMATS. `beside` asks
    for every small file that goes with the model, not only those that are read here (is_beside, SMALL). Raises Error
    on what is no path, where the folder does not exist or huggingface_hub is not installed, and where the repository, revision
    or its weights cannot be had.
    """
    if not isinstance(path_or_repo, str | PathLike):
        raise Error(f"a checkpoint is given as {type(path_or_repo).__name__}; it must be a path, or a Hub repository's name")
    name = str(path_or_repo)
    told = name if len(name) <= 80 else f"{name[:77]}..."
    try:
        path = Path(path_or_repo).expanduser()
        local = path.is_dir() or (is_weights(path) and path.is_file())
        is_file = path.exists()
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # of too long a name, an unknown user, bytes, a zero byte
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise Error(f"there is no folder {told}: {reason}") from error
    if (local or is_file) and revision is not None:
        raise Error(f"{path} is on this disk, where there are no revisions: leave out {revision!r}, or name a Hub repository")
    if local:
        return path
    if is_file:
        raise Error(
            f"{path} is a file; give the folder that holds config.json and the weights, or their file ({', '.join(SUFFIXES)})"
        )
    if name.startswith((".", "~", "/")) or not REPOSITORY.fullmatch(name) or ("/" not in name and name not in OWNERS):
        raise Error(f"there is no folder {told}, and it is not the name of a Hub repository (organisation/name)")
    try:
        import huggingface_hub
    except ImportError as error:
        raise Error(f"there is no folder {name}; to load it from the Hub, pip install 'tinyroberta[hub]'") from error
    return _download(huggingface_hub, name, revision, weights, beside)


def _names_of(name: str) -> tuple[str, ...]:
    """A repository's names: the one given, and where it was published without an owner, or has one since, the other."""
    owner, _, own = name.rpartition("/")
    whole = f"{OWNERS.get(own, owner)}/{own}"
    return (name, own if owner else whole) if own in OWNERS and name in (own, whole) else (name,)


def _download(hub: Any, name: str, revision: str | None, weights: bool, beside: bool) -> Path:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    reached, repository = True, name

    def listed(at: str | None) -> dict[str, int]:
        """The files of a revision and their bytes, where `beside` asks for them, by one request; where the Hub cannot be
        reached, those of ours that the cache holds."""
        nonlocal reached, repository
        if reached:
            try:
                held = hub.HfApi().model_info(repository, revision=at, files_metadata=beside).siblings or []
                return {file.rfilename: file.size or 0 for file in held}
            except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
                raise
            except Exception:  # offline, or whatever the HTTP library of this version raises
                reached = False
                known = (same for same in _names_of(name) if hub.try_to_load_from_cache(same, "config.json", revision=at))
                repository = next(known, name)
        cached = {file for file in FILES if isinstance(hub.try_to_load_from_cache(repository, file, revision=at), str)}
        indexes = [file(filename, at) for filename in cached if filename.endswith(".index.json")]
        return dict.fromkeys(cached.union(*(shard_names(index) for index in indexes)), 0)

    def file(filename: str, at: str | None) -> Path:
        return Path(hub.hf_hub_download(repository, filename, revision=at, local_files_only=not reached))

    def pull_requests() -> list[str]:
        if reached:
            references = [
                pull.ref for pull in hub.HfApi().list_repo_refs(repository, include_pull_requests=True).pull_requests or []
            ]
        else:
            cache = Path(hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "refs"
            references = [path.relative_to(cache).as_posix() for path in cache.glob("refs/pr/*")]
        numbered = [reference for reference in references if re.fullmatch(r"refs/pr/\d+", reference)]
        return sorted(numbered, key=lambda reference: int(reference.rsplit("/", 1)[1]), reverse=True)

    def missing(what: str) -> Error:
        if not reached:
            return Error(f"{name}: {what} is not in the local cache, and the Hub cannot be reached or HF_HUB_OFFLINE is set")
        return Error(f"{name} holds no {what} at revision {revision or 'main'}")

    try:
        held = listed(revision)
        if weights and revision is None and held.keys().isdisjoint(SAFETENSORS.files):
            for reference in pull_requests():
                if not (there := listed(reference)).keys().isdisjoint(SAFETENSORS.files):
                    warnings.warn(f"{name} has no safetensors on main; taking them from {reference}", stacklevel=4)
                    revision, held = reference, there
                    break
        if "config.json" not in held:
            raise missing("config.json")
        folder = file("config.json", revision).parent
        if weights:
            form = next((form for form in FORMATS if not held.keys().isdisjoint(form.files)), None)
            if form is None:
                raise missing("model.safetensors")
            single, *index = form.files
            wanted = [single] if single in held else [*index, *shard_names(file(index[0], revision))]
            if absent := [filename for filename in wanted if filename not in held]:
                raise missing(", ".join(absent))
            for filename in (*wanted, *(filename for filename in (*SETTINGS, *TEXT) if filename in held)):
                file(filename, revision)
        if beside:
            for filename, size in held.items():
                if is_beside(filename) and size <= SMALL:
                    file(filename, revision)
        return folder
    except Error:
        raise
    except GatedRepoError as error:
        raise Error(f"{name} is gated: accept its terms on the Hub, then log in with `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise Error(f"{name} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise Error(f"there is no folder {name} and no such repository on the Hub, or it is private: check the name") from error
    except Exception as error:  # what the HTTP library of this version raises
        raise Error(f"cannot download {name}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
