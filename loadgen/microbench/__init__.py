"""Microbenchmarks of GPU kernels: kernel files x cases -> kernel records.

``cases``, ``records`` and what computes on them are pure; ``kernel_file``, ``tensors``, ``check``,
``timing`` and ``worker`` import torch and run in a process of their own, in whichever Python has it.
"""
