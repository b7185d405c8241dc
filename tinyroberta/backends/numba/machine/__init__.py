"""What a kernel asks of the machine: memory, atomics, the system, lanes, bf16, tiles. Nothing of the model is in this room."""
