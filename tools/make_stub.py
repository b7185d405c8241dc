"""Write tinyroberta/family.pyi, where type checkers and editors read the classes that family.py makes from its tables.

python tools/make_stub.py
"""

from pathlib import Path

from tinyroberta.family import KIN, OWN, __all__

STUB = Path(__file__).parents[1] / "tinyroberta" / "family.pyi"


def stub() -> str:
    """The text of the file."""
    own = KIN[OWN]
    lines = ["# Written by tools/make_stub.py from the tables of family.py.", "", "from .models import ("]
    lines += [f"    {name}," for name in sorted(cls.__name__ for cls in own.values())]
    lines += ["    RobertaPreLayerNormPreTrainedModel,", ")", "", "__all__ = ["]
    lines += [*(f'    "{name}",' for name in __all__), "]", ""]
    lines += ["Class = type[RobertaPreLayerNormPreTrainedModel]", "OWN: str", "KIN: dict[str, dict[str, Class]]", ""]
    lines += ["def named(model_type: str, head: str) -> str: ...", "def made(model_type: str, head: str) -> Class: ...", ""]
    for model_type, kin in KIN.items():
        lines += [f"class {cls.__name__}({own[head].__name__}): ..." for head, cls in kin.items() if model_type != OWN]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    STUB.write_text(stub())
