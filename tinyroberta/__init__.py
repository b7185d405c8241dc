"""RoBERTa-PreLayerNorm without a deep-learning framework."""

from .cache import Cache
from .config import RobertaPreLayerNormConfig
from .encoder_decoder import EncoderDecoderModel
from .errors import Error
from .models import (
    RobertaPreLayerNormForCausalLM,
    RobertaPreLayerNormForMaskedLM,
    RobertaPreLayerNormForMultipleChoice,
    RobertaPreLayerNormForQuestionAnswering,
    RobertaPreLayerNormForSequenceClassification,
    RobertaPreLayerNormForTokenClassification,
    RobertaPreLayerNormModel,
    load,
)

__version__ = "0.1.0"
__all__ = [
    "Cache",
    "EncoderDecoderModel",
    "Error",
    "RobertaPreLayerNormConfig",
    "RobertaPreLayerNormForCausalLM",
    "RobertaPreLayerNormForMaskedLM",
    "RobertaPreLayerNormForMultipleChoice",
    "RobertaPreLayerNormForQuestionAnswering",
    "RobertaPreLayerNormForSequenceClassification",
    "RobertaPreLayerNormForTokenClassification",
    "RobertaPreLayerNormModel",
    "load",
]
