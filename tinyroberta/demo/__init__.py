"""The embedded model: a small masked language model, trained by tools/train_demo.py; its card is README.md."""

from pathlib import Path

FOLDER = Path(__file__).parent
