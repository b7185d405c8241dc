"""The wheel's build hook: where Numba and a linker are at hand, the CPU backend's kernels travel in it as machine code.

They are what tools/build_libraries.py has made in this checkout, if that was from the sources as they are; else they are made
now. Without Numba, a C compiler or Linux on x86-64 the wheel is pure Python, and the build says so.
"""

import runpy
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INTO = "tinyroberta/backends/numba/libraries"


class Libraries(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the libraries to a wheel, and the tag of the system that they are for."""

    folder: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or self.target_name != "wheel":
            return
        tool = runpy.run_path(str(Path(self.root) / "tools" / "build_libraries.py"))
        paths = tool["built"]()
        if not paths:
            if reason := tool["reason_against"]():
                self.app.display_warning(f"this wheel is pure Python, without compiled kernels: {reason}")
                return
            self.folder = Path(tempfile.mkdtemp())
            paths = tool["build"](self.folder)
        build_data["force_include"] |= {str(path): f"{INTO}/{path.name}" for path in paths}
        build_data["pure_python"], build_data["tag"] = False, tool["TAG"]
        size = sum(path.stat().st_size for path in paths) / 1e6
        self.app.display_info(f"this wheel has compiled kernels, {size:.2f} MB: {', '.join(path.name for path in paths)}")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        if self.folder is not None:
            shutil.rmtree(self.folder)
