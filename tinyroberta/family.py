"""The rest of the family by Hugging Face's names: the seven classes again for every other model_type.

Nothing differs but model_type: names.FAMILIES says what follows from it, forward.py where the norm stands.
"""

from .models import (
    CLASSES,
    RobertaPreLayerNormForCausalLM,
    RobertaPreLayerNormForMaskedLM,
    RobertaPreLayerNormForMultipleChoice,
    RobertaPreLayerNormForQuestionAnswering,
    RobertaPreLayerNormForSequenceClassification,
    RobertaPreLayerNormForTokenClassification,
    RobertaPreLayerNormModel,
    RobertaPreLayerNormPreTrainedModel,
)

# RoBERTa, post-norm.


class RobertaModel(RobertaPreLayerNormModel):
    """Mirrors transformers' RobertaModel."""

    model_type = "roberta"


class RobertaForCausalLM(RobertaPreLayerNormForCausalLM):
    """Mirrors transformers' RobertaForCausalLM."""

    model_type = "roberta"


class RobertaForMaskedLM(RobertaPreLayerNormForMaskedLM):
    """Mirrors transformers' RobertaForMaskedLM."""

    model_type = "roberta"


class RobertaForSequenceClassification(RobertaPreLayerNormForSequenceClassification):
    """Mirrors transformers' RobertaForSequenceClassification."""

    model_type = "roberta"


class RobertaForMultipleChoice(RobertaPreLayerNormForMultipleChoice):
    """Mirrors transformers' RobertaForMultipleChoice."""

    model_type = "roberta"


class RobertaForTokenClassification(RobertaPreLayerNormForTokenClassification):
    """Mirrors transformers' RobertaForTokenClassification."""

    model_type = "roberta"


class RobertaForQuestionAnswering(RobertaPreLayerNormForQuestionAnswering):
    """Mirrors transformers' RobertaForQuestionAnswering."""

    model_type = "roberta"


# XLM-RoBERTa: RoBERTa in a hundred languages.


class XLMRobertaModel(RobertaPreLayerNormModel):
    """Mirrors transformers' XLMRobertaModel."""

    model_type = "xlm-roberta"


class XLMRobertaForCausalLM(RobertaPreLayerNormForCausalLM):
    """Mirrors transformers' XLMRobertaForCausalLM."""

    model_type = "xlm-roberta"


class XLMRobertaForMaskedLM(RobertaPreLayerNormForMaskedLM):
    """Mirrors transformers' XLMRobertaForMaskedLM."""

    model_type = "xlm-roberta"


class XLMRobertaForSequenceClassification(RobertaPreLayerNormForSequenceClassification):
    """Mirrors transformers' XLMRobertaForSequenceClassification."""

    model_type = "xlm-roberta"


class XLMRobertaForMultipleChoice(RobertaPreLayerNormForMultipleChoice):
    """Mirrors transformers' XLMRobertaForMultipleChoice."""

    model_type = "xlm-roberta"


class XLMRobertaForTokenClassification(RobertaPreLayerNormForTokenClassification):
    """Mirrors transformers' XLMRobertaForTokenClassification."""

    model_type = "xlm-roberta"


class XLMRobertaForQuestionAnswering(RobertaPreLayerNormForQuestionAnswering):
    """Mirrors transformers' XLMRobertaForQuestionAnswering."""

    model_type = "xlm-roberta"


# CamemBERT: RoBERTa in French.


class CamembertModel(RobertaPreLayerNormModel):
    """Mirrors transformers' CamembertModel."""

    model_type = "camembert"


class CamembertForCausalLM(RobertaPreLayerNormForCausalLM):
    """Mirrors transformers' CamembertForCausalLM."""

    model_type = "camembert"


class CamembertForMaskedLM(RobertaPreLayerNormForMaskedLM):
    """Mirrors transformers' CamembertForMaskedLM."""

    model_type = "camembert"


class CamembertForSequenceClassification(RobertaPreLayerNormForSequenceClassification):
    """Mirrors transformers' CamembertForSequenceClassification."""

    model_type = "camembert"


class CamembertForMultipleChoice(RobertaPreLayerNormForMultipleChoice):
    """Mirrors transformers' CamembertForMultipleChoice."""

    model_type = "camembert"


class CamembertForTokenClassification(RobertaPreLayerNormForTokenClassification):
    """Mirrors transformers' CamembertForTokenClassification."""

    model_type = "camembert"


class CamembertForQuestionAnswering(RobertaPreLayerNormForQuestionAnswering):
    """Mirrors transformers' CamembertForQuestionAnswering."""

    model_type = "camembert"


# XLM-RoBERTa-XL: pre-norm, its embeddings not normed.


class XLMRobertaXLModel(RobertaPreLayerNormModel):
    """Mirrors transformers' XLMRobertaXLModel."""

    model_type = "xlm-roberta-xl"


class XLMRobertaXLForCausalLM(RobertaPreLayerNormForCausalLM):
    """Mirrors transformers' XLMRobertaXLForCausalLM."""

    model_type = "xlm-roberta-xl"


class XLMRobertaXLForMaskedLM(RobertaPreLayerNormForMaskedLM):
    """Mirrors transformers' XLMRobertaXLForMaskedLM."""

    model_type = "xlm-roberta-xl"


class XLMRobertaXLForSequenceClassification(RobertaPreLayerNormForSequenceClassification):
    """Mirrors transformers' XLMRobertaXLForSequenceClassification."""

    model_type = "xlm-roberta-xl"


class XLMRobertaXLForMultipleChoice(RobertaPreLayerNormForMultipleChoice):
    """Mirrors transformers' XLMRobertaXLForMultipleChoice."""

    model_type = "xlm-roberta-xl"


class XLMRobertaXLForTokenClassification(RobertaPreLayerNormForTokenClassification):
    """Mirrors transformers' XLMRobertaXLForTokenClassification."""

    model_type = "xlm-roberta-xl"


class XLMRobertaXLForQuestionAnswering(RobertaPreLayerNormForQuestionAnswering):
    """Mirrors transformers' XLMRobertaXLForQuestionAnswering."""

    model_type = "xlm-roberta-xl"


def classes_of(model_type: str) -> list[type[RobertaPreLayerNormPreTrainedModel]]:
    """The seven classes of a model_type, in the order of CLASSES."""
    kin = [(cls, *cls.__subclasses__()) for cls in CLASSES.values()]
    return [next(cls for cls in family if cls.model_type == model_type) for family in kin]
