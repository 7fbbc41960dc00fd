"""What is compiled for GPUs.

Each imports only what stands above it:

    access      loads and stores at an address, 16 bytes at once where they lie right
    access_mlir the same for numba-cuda-mlir
    layout      what a kernel is compiled for, and what it works on, by name
    formats     number formats: from memory to float32 or float64 and back
    columns     the columns of a group of elements: into registers and back
    grid        entry points: one array, or many in one launch; how threads share them
    mathematics the functions of `element`
    eight_bit   the update of arrays whose moments are in 8 bits, block by block
    update      the update itself
    accumulate  gradients added to sums
    fold        the constants of a step, from step numbers that live on the GPU
    norm        the sum of squares of the gradients, in the same order as on the CPU

Every argument of a kernel is a number: an address, a count. Passing arrays costs microseconds each.
"""
