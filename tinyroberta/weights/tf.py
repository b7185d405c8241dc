"""TensorFlow checkpoints: tf_model.h5, as Keras and transformers write it, and safetensors files that TensorFlow wrote."""

from pathlib import Path

from ..errors import Error
from .foreign import Place, Places, Renamed
from .hdf5 import datasets
from .safetensors import Tensors, files_of

SINGLE = "tf_model.h5"
LEAVES = {"kernel": "weight", "gamma": "weight", "embeddings": "weight", "beta": "bias"}


def open_tf(path: Path) -> Renamed:
    """The tensors of a tf_model.h5, or of a folder that holds one or its shards, under PyTorch's names.

    Nothing but the names and shapes is read before a tensor is looked at. Raises Error where a file is not a whole HDF5 file or
    holds what Keras does not write. Mirrors transformers' load_tf2_checkpoint_in_pytorch_model.
    """
    places: dict[str, Place] = {}
    files, _ = files_of(path, SINGLE)
    for file in files:
        found = datasets(file)
        if twice := next((name for name in found if name in places), None):
            raise Error(f"{file} and {places[twice].path} both hold {twice}")
        places |= found
    return renamed(Places(places), files[0] if len(files) == 1 else path)


def renamed(stored: Tensors | Places, where: Path) -> Renamed:
    """A TensorFlow checkpoint's arrays under PyTorch's names: encoder/layer_._0/output/dense/kernel:0 is the transposed .weight.

    Keras puts the layer's group and the model's name before a weight's own name: lm_head/tf_..._for_masked_lm/lm_head/bias:0.
    The shards of transformers and its safetensors files have the name alone.
    """
    layers = {source.split("/")[0] for source in stored}
    own: dict[str, tuple[str, bool]] = {}
    for source in stored:
        parts = source.removesuffix(":0").split("/")
        if len(parts) > 3 and parts[2] in layers:
            parts = parts[2:]
        *path, leaf = parts
        name = ".".join([*path, LEAVES.get(leaf, leaf)]).replace("_._", ".")
        own[source] = name, leaf == "kernel" and len(stored.shape(source)) == 2
    return Renamed(stored, own, where)
