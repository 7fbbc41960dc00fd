"""What is compiled for GPUs.

Each imports only what stands above it:

    access      loads and stores at an address, 16 bytes at once where they lie right
    formats     number formats: from memory to float32 or float64 and back
    update      the update itself: one array, or many in one launch
    fold        the constants of a step, from step numbers that live on the GPU
    norm        the sum of squares of the gradients, in the same order as on the CPU

Every argument of a kernel is a number: an address, a count. Passing arrays costs microseconds each.
"""
