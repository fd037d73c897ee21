"""Triton kernels and what launches them; nothing here is imported where Triton is not used."""
