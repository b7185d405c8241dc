"""python -m amx_on_cpu -m pytest ...: Python, with tiles."""

import os
import sys

from .emulator import environment, reason_against

if reason := reason_against():
    sys.exit(reason)
os.execve(sys.executable, [sys.executable, *sys.argv[1:]], os.environ | environment())
