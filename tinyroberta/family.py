"""The family by Hugging Face's names: two tables, FAMILIES x HEADS, and a class for each pair of them.

The classes of roberta-prelayernorm are written out in models.py; every other is one of them with another model_type, and nothing
else differs: names.FAMILIES says what follows from it, forward.py where the norm stands. tools/make_stub.py writes family.pyi,
where type checkers and editors read the names.
"""

from .heads import HEADS
from .models import CLASSES, RobertaPreLayerNormPreTrainedModel
from .weights.names import FAMILIES

Class = type[RobertaPreLayerNormPreTrainedModel]
OWN = RobertaPreLayerNormPreTrainedModel.model_type


def named(model_type: str, head: str) -> str:
    """How transformers calls the class of a family and a head."""
    return FAMILIES[model_type].classes + head


def made(model_type: str, head: str) -> Class:
    """A class of a family, as if it were written in this module."""
    name, base = named(model_type, head), CLASSES[named(OWN, head)]
    fields = {"model_type": model_type, "__module__": __name__, "__doc__": f"Mirrors transformers' {name}."}
    return type(name, (base,), fields)


KIN: dict[str, dict[str, Class]] = {  # a model_type's classes by their heads
    model_type: {head: CLASSES[named(OWN, head)] if model_type == OWN else made(model_type, head) for head in HEADS}
    for model_type in FAMILIES
}
__all__ = sorted(cls.__name__ for kin in KIN.values() for cls in kin.values())
globals().update({cls.__name__: cls for kin in KIN.values() for cls in kin.values()})
