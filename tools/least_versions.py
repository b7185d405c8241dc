"""Print the least version of everything that pyproject.toml declares, as constraints for pip.

    python tools/least_versions.py > least.txt && pip install -c least.txt '.[test]'

An extra that asks for a later version than another (the GPU's, of NumPy; Ray's, of pyarrow) is left out with what it names.
"""

import re
import sys
import tomllib
from pathlib import Path

OTHERS = ("cuda12", "cuda13", "ray", "docs", "dev")  # GPUs; clusters; what builds the site; tools whose very version is named
DECLARED = re.compile(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)$")
OURSELVES = re.compile(r"tinyroberta\[[\w,]+\]$")


def least(project: dict[str, dict]) -> dict[str, str]:
    """Name to version; raises ValueError on a requirement that does not name its least version."""
    extras = (needs for name, needs in project["optional-dependencies"].items() if name not in OTHERS)
    pins: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(need for needs in extras for need in needs)]:
        if OURSELVES.match(requirement):
            continue
        found = DECLARED.match(requirement)
        if not found or pins.get(found[1], found[2]) != found[2]:
            raise ValueError(f"pyproject.toml: {requirement!r} does not say one least version, as name>=version does")
        pins[found[1]] = found[2]
    return pins


if __name__ == "__main__":
    content = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in least(content["project"]).items())
