"""CUDA without a GPU: an emulator of kernels, a stand-in for CuPy and cuBLASLt, the compiler for real targets (README.md)."""
