"""Fetch the antibody model of Sapiens (MIT, (c) 2022 Merck Sharp & Dohme Corp.): a real RoBERTa in fairseq's own format.

python tools/fetch_sapiens.py FOLDER      downloads the wheel with pip, unpacks checkpoint_vh.pt and dict.txt into FOLDER
TINYROBERTA_SAPIENS=FOLDER pytest tests/test_fairseq.py
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "sapiens==1.0.3"
FILES = ("checkpoint_vh.pt", "dict.txt")


def fetch(folder: Path) -> None:
    """Write FILES into a folder; nothing of the package is installed or run."""
    with tempfile.TemporaryDirectory() as work:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", work, WHEEL]
        subprocess.run(pip, check=True)
        (wheel,) = Path(work).glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in FILES:
                (folder / name).write_bytes(archive.read(f"sapiens/models/v1/{name}"))
                print(folder / name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fetch(Path(sys.argv[1]))
