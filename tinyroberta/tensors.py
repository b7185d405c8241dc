"""Which tensors a model has, name to shape: the encoder's, and the parts of which heads are made too (heads.py)."""

from .config import RobertaPreLayerNormConfig
from .errors import Error
from .weights.names import FAMILIES, WORDS, Shape, Stored


def encoder_shapes(config: RobertaPreLayerNormConfig, pooler: bool) -> dict[str, Shape]:
    """The bare model's tensors, name to shape (specified by transformers' RobertaPreLayerNormModel.state_dict())."""
    D, I, d, family = config.hidden_size, config.intermediate_size, config.head_size, FAMILIES[config.model_type]
    before, after = ("attention.LayerNorm", "intermediate.LayerNorm"), ("attention.output.LayerNorm", "output.LayerNorm")
    norms = before if family.pre_norm else after
    shapes: dict[str, Shape] = {
        WORDS: (config.vocab_size, D),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, D),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, D),
    }
    if family.embedding_norm:
        shapes |= norm("embeddings.LayerNorm", D)
    for index in range(config.num_hidden_layers):
        layer = f"encoder.layer.{index}."
        width = D - d * len(config.pruned_heads.get(index, ()))
        shapes |= norm(layer + norms[0], D) | _attention(layer + "attention", D, width)
        if config.position_embedding_type != "absolute":
            shapes[layer + "attention.self.distance_embedding.weight"] = (2 * config.max_position_embeddings - 1, d)
        if config.add_cross_attention:
            shapes |= norm(f"{layer}cross{norms[0]}", D) | _attention(layer + "crossattention", D, D)
        shapes |= norm(layer + norms[1], D)
        shapes |= dense(layer + "intermediate.dense", I, D) | dense(layer + "output.dense", D, I)
    if family.pre_norm:
        shapes |= norm("LayerNorm", D)
    return shapes | (dense("pooler.dense", D, D) if pooler else {})


def dense(name: str, out: int, into: int) -> dict[str, Shape]:
    """A dense layer's two, (out, into) and (out,)."""
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, Shape]:
    """A norm's two, (width,)."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name: str, D: int, width: int) -> dict[str, Shape]:
    shapes = dense(f"{name}.output.dense", D, width)
    for part in ("query", "key", "value"):
        shapes |= dense(f"{name}.self.{part}", width, D)
    return shapes


def check_layers(config: RobertaPreLayerNormConfig, stored: Stored, where: str) -> None:
    """Raise Error where a configuration has more layers than the file has tensors, before names are made for each of them."""
    if config.num_hidden_layers > len(stored):
        raise Error(f"{where}: config.json says {config.num_hidden_layers} layers, the weights are only {len(stored)} tensors")
