"""AMX without AMX: an emulator of the tile unit for x86-64 Linux (README.md)."""
