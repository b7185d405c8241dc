"""RoBERTa-PreLayerNorm without a deep-learning framework."""

from typing import TYPE_CHECKING, Any

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
from .tasks import TASKS, task

if TYPE_CHECKING:
    from .tasks.answer import QuestionAnswering
    from .tasks.choose import MultipleChoice
    from .tasks.classify import TextClassification
    from .tasks.embed import Embedder
    from .tasks.features import FeatureExtraction
    from .tasks.fill_mask import FillMask
    from .tasks.generate import TextGeneration
    from .tasks.rerank import Reranker
    from .tasks.tag import TokenClassification

__version__ = "0.1.0"
__all__ = [
    "Cache",
    "CamembertConfig",
    "Embedder",
    "EncoderDecoderModel",
    "Error",
    "FeatureExtraction",
    "FillMask",
    "MultipleChoice",
    "QuestionAnswering",
    "Reranker",
    "RobertaConfig",
    "RobertaPreLayerNormConfig",
    "TextClassification",
    "TextGeneration",
    "TokenClassification",
    "XLMRobertaConfig",
    "XLMRobertaXLConfig",
    "load",
    "task",
    "trace",
]
__all__ += family.__all__


def __getattr__(name: str) -> Any:
    """The tasks' classes, imported where they are used."""
    from importlib import import_module

    for file, kind in TASKS.values():
        if kind == name:
            return getattr(import_module(f".tasks.{file}", __name__), kind)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
