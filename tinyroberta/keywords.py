"""How a model is run, and transformers' keywords: those that change nothing here are taken, the others refused by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

from .backends import DTYPES, PRECISIONS, Settings, backend_name, default_backend, load_backend
from .config import RobertaPreLayerNormConfig
from .errors import Error


class Running(TypedDict, total=False):
    """How a model is run: the same arguments for load, from_pretrained and a new model.

    backend: its name, None for cpu where its kernels are there and can run the model, else numpy; dtype: "float32" or "float64";
    matmul_precision: "highest", "high" or "medium"; threads: how many, None for all the process may use; reproducible: the
    outputs but for losses have the same bits on every machine, path, number of threads and in any batch, as backends/bitwise.py
    defines them.
    """

    backend: str | None
    dtype: str
    matmul_precision: str
    threads: int | None
    reproducible: bool


RUNNING = tuple(Running.__annotations__)
OWN = ("config", "revision", "transformers_version", *RUNNING)
FIELDS = {field.name for field in dataclasses.fields(RobertaPreLayerNormConfig)} - {"extra"}
OFF = (None, False)
ANY = None  # every value

# A keyword: the values that change nothing, and what to do instead of another.
HUB: dict[str, tuple[tuple[Any, ...] | None, str]] = {  # where the checkpoint is a folder, every value of these changes nothing
    "cache_dir": (OFF, "the variable HF_HOME says where downloads are kept"),
    "force_download": (OFF, "delete the repository from the cache that HF_HOME names"),
    "local_files_only": (OFF, "the variable HF_HUB_OFFLINE=1 keeps huggingface_hub off the network"),
    "proxies": (OFF, "the variable HTTPS_PROXY names one"),
    "resume_download": (ANY, ""),
    "token": ((*OFF, True), "`hf auth login` or the variable HF_TOKEN logs in"),
    "use_auth_token": ((*OFF, True), "`hf auth login` or the variable HF_TOKEN logs in"),
    "mirror": (OFF, "the variable HF_ENDPOINT names one"),
    "code_revision": (ANY, ""),
}
OTHERS: dict[str, tuple[tuple[Any, ...] | None, str]] = {
    "config": (OFF, "the from_pretrained of one model's class takes a configuration"),  # load's and a pair's do not
    "low_cpu_mem_usage": (ANY, ""),
    "weights_only": (ANY, ""),  # nothing in a pickle ever runs
    "_fast_init": (ANY, ""),
    "offload_folder": (ANY, ""),
    "offload_state_dict": (ANY, ""),
    "offload_buffers": (ANY, ""),
    "max_memory": (ANY, ""),
    "use_safetensors": ((*OFF, True), ""),
    "add_pooling_layer": ((None, True), "leave its output unread"),
    "device_map": ((*OFF, "cpu", "auto", {"": "cpu"}), 'backend="cupy" runs on a GPU'),
    "attn_implementation": ((*OFF, "eager", "sdpa"), "attention has one implementation here"),
    "subfolder": ((*OFF, "", "."), "give the path of that folder"),
    "output_loading_info": (OFF, "tinyroberta.inspect.inspect says what a checkpoint holds"),
    "from_tf": (OFF, "the format is seen from the files"),
    "from_flax": (OFF, "the format is seen from the files"),
    "trust_remote_code": (OFF, "no code of a checkpoint is ever run"),
    "state_dict": (OFF, "a class takes a configuration and tensors: Class(config, tensors)"),
    "ignore_mismatched_sizes": (OFF, "give the config that the weights were made with"),
    "quantization_config": (OFF, 'matmul_precision="medium" computes in bf16'),
    "load_in_8bit": (OFF, 'matmul_precision="medium" computes in bf16'),
    "load_in_4bit": (OFF, 'matmul_precision="medium" computes in bf16'),
    "variant": (OFF, "rename the files to model.safetensors"),
    "gguf_file": (OFF, "GGUF is not read"),
    "generation_config": (OFF, "give its settings to generate"),
    "key_mapping": (OFF, "rename the tensors in the file"),
    "tp_plan": (OFF, "one process runs the model"),
    "device_mesh": (OFF, "one process runs the model"),
    "use_kernels": (OFF, "the backend is the choice of kernels"),
    "experts_implementation": (OFF, "there are no experts"),
    "adapter_kwargs": (OFF, "merge the adapter into the weights first"),
}


def running_of(given: Mapping[str, Any], local: bool) -> Any:
    """What is left of from_pretrained's keywords once transformers' are taken: how the model is run (Running).

    `local` says that the checkpoint is on this disk. Raises Error on a keyword that is unknown, and on one whose value asks for
    what this library does not do.
    """
    running = {name: value for name, value in given.items() if name in RUNNING}
    for name in ("dtype", "torch_dtype"):
        if name in given:
            running["dtype"] = dtype_name(given[name], name)
    for name, value in given.items():
        if name in RUNNING or name == "torch_dtype":
            continue
        if name in FIELDS:
            told = "give config=dataclasses.replace(CONFIG, ...), of what the configuration class's from_pretrained returns"
            raise Error(f"{name} is a field of the configuration: {told}")
        if name not in HUB and name not in OTHERS:
            raise Error(f"from_pretrained does not know {name}; it takes {', '.join(OWN)}")
        allowed, instead = (HUB | OTHERS)[name]
        if allowed is ANY or value in allowed or (local and name in HUB):
            continue
        shown = repr(value) if len(repr(value)) <= 60 and "token" not in name else "given"
        raise Error(f"from_pretrained does nothing with {name} ({shown}): {instead or 'leave it out'}")
    return running


def dtype_name(given: Any, name: str = "dtype") -> str:
    """The name of the dtype to compute in: given by it, by NumPy's or torch's dtype, or by "auto" or None for float32.

    Raises Error on another.
    """
    told = str(given).removeprefix("torch.")
    if given is None or told == "auto":
        return DTYPES[0]
    if isinstance(given, type | np.dtype):
        try:
            told = np.dtype(given).name
        except TypeError:
            told = given.__name__ if isinstance(given, type) else told
    if told not in DTYPES:
        half = ' (weights stay as they are stored; matmul_precision="medium" computes in bf16)' if "16" in told else ""
        raise Error(f"{name} is {told!r}; it must be one of {', '.join(DTYPES)}{half}")
    return told


def settings_of(
    backend: str | None = None,
    dtype: str = "float32",
    matmul_precision: str = "highest",
    threads: int | None = None,
    reproducible: bool = False,
    **unknown: Any,
) -> tuple[str, Settings]:
    """A backend's name and the settings for it; raises Error on a value that is none of the allowed ones.

    float64 is NumPy's alone, so it is the backend where none is named.
    """
    if unknown:
        raise Error(f"a model does not know {', '.join(sorted(unknown))}; it takes {', '.join(RUNNING)}")
    dtype = dtype_name(dtype)
    if matmul_precision not in PRECISIONS:
        raise Error(f"matmul_precision is {matmul_precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise Error(f"threads is {threads!r}; it must be a whole number of at least 1, or None for all the process may use")
    backend = backend_name(backend or ("numpy" if dtype == "float64" else default_backend()))
    load_backend(backend, reproducible)
    return backend, Settings(dtype, matmul_precision, threads, bool(reproducible))
