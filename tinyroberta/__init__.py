"""RoBERTa-PreLayerNorm without a deep-learning framework."""

from . import (
    family,
    terminal,  # noqa: F401 - first: in a command it sees to Ctrl-C during the imports below
)
from .auto import load
from .cache import Cache
from .config import CamembertConfig, RobertaConfig, RobertaPreLayerNormConfig, XLMRobertaConfig, XLMRobertaXLConfig
from .encoder_decoder import EncoderDecoderModel
from .errors import Error
from .family import *  # noqa: F403 - the seven classes of every family, by their names in family.__all__
from .tap import trace
from .tasks.embed import Embedder
from .tasks.rerank import Reranker

__version__ = "0.1.0"
__all__ = [
    "Cache",
    "CamembertConfig",
    "Embedder",
    "EncoderDecoderModel",
    "Error",
    "Reranker",
    "RobertaConfig",
    "RobertaPreLayerNormConfig",
    "XLMRobertaConfig",
    "XLMRobertaXLConfig",
    "load",
    "trace",
]
__all__ += family.__all__
