"""Attention over packed sequences: float32.py by multiply-adds, bf16.py by products of bf16; launch.py and scores.py for both."""
