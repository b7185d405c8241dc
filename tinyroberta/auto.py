"""The model of a checkpoint, of the class that its config.json names."""

from pathlib import Path
from typing import Any, Literal

from .config import RobertaPreLayerNormConfig, config_of
from .encoder_decoder import EncoderDecoderModel, is_pair
from .errors import Error
from .family import KIN
from .keywords import Running, running_of, settings_of
from .models import RobertaPreLayerNormPreTrainedModel, placed
from .weights import names
from .weights.checkpoint import Stored, open_checkpoint, read_config, read_generation_config
from .weights.hub import checkpoint_folder, on_disk


def load(
    path_or_repo: str | Path,
    backend: str | None = None,
    dtype: str = "float32",
    matmul_precision: str = "highest",
    threads: int | None = None,
    reproducible: bool = False,
    *,
    revision: str | None = None,
    transformers_version: Literal[4, 5] = 5,
    **others: Any,
) -> Any:
    """The model in a folder, a file of weights or a Hub repository, of the class that its config.json names, or the bare model.

    A file is read with the config.json beside it, fairseq's without.

    transformers_version=4 gives that version's tied weights and hidden_states[-1] where they differ from version 5's
    (`from_pretrained` says how).
    Raises Error where the class is none of this library's, or as `from_pretrained` does, whose other keywords are taken too.
    """
    running = Running(backend=backend, dtype=dtype, matmul_precision=matmul_precision, threads=threads, reproducible=reproducible)
    running = running_of({**running, **others}, on_disk(path_or_repo))
    settings_of(**running)
    folder = checkpoint_folder(path_or_repo, revision)
    if is_pair(read_config(folder)):
        return EncoderDecoderModel.from_pretrained(folder, transformers_version=transformers_version, **running)
    stored = open_checkpoint(folder)
    cls, config = class_of(folder, stored)
    model = cls.from_stored(stored, config, str(folder), transformers_version, **running)
    model.generation_config = read_generation_config(folder)
    return model


def class_of(folder: Path, stored: Stored) -> tuple[type[RobertaPreLayerNormPreTrainedModel], RobertaPreLayerNormConfig]:
    """The class and configuration that a checkpoint asks for; raises Error where the class is none of this library's."""
    config = placed(config_of(folder, model_type=lambda: names.model_type_of(stored)), stored)
    if config.model_type not in names.FAMILIES:
        raise Error(f"{folder}: model_type is {config.model_type!r}; this version runs {', '.join(names.FAMILIES)}")
    classes = {cls.__name__: cls for cls in KIN[config.model_type].values()}
    name = (config.architectures or list(classes))[0]
    if name not in classes:
        raise Error(f"{folder}: config.json names the class {name}; for {config.model_type} there are {', '.join(classes)}")
    return classes[name], config
