"""The on-disk cache of compiled kernels, for the CPU and GPUs. Imports no compiler."""
