"""The CPU backend: the update of arrays in this host's memory.

part         CpuPart: parameters that are computed in one dtype, with their state; fulfils settings/contract.py
table        UpdateTable: arrays that are updated together, in one launch
columns      the arrays of a table, validated, and as numbers for the kernels
fast_path    one step of one parameter of plain NumPy arrays, for `adam_update`
moments      moments: zeros, loaded, placed so that a step is fast
copies       master weights, moving averages and low-precision copies
accumulator  sums of gradients
conversion   arrays in another number format
kernels/     what Numba compiles

May import everything below, and never `cuda`.
"""
