"""Triton kernels of sampling and training on CUDA; imported where they are launched alone."""
