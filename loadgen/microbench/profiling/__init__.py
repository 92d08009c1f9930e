"""Kernels under a profiler."""
