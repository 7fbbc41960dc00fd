"""The kernels of the GPU backend.

Kernels are made by builders: functions that take what a kernel is compiled for (a `Layout`, a dtype) and return an
entry point, a closure over the compiled functions that it calls. Each module imports only what stands above it:

    access_types  what every way to access memory has in common
    access_*      loads and stores at an address, 16 bytes at once where aligned: in LLVM IR, in MLIR, in the simulator
    access        those of the CUDA package in use
    layout        what a kernel is compiled for, and what it works on, by name
    mathematics   the functions of `numerics`, compiled for a GPU
    formats       number formats: how one column is loaded, decoded, encoded and stored
    columns       all columns of a group of elements
    grid          entry points: one array, or many in one launch; how threads share the elements
    eight_bit     the update of arrays with 8-bit moments, block by block
    update        the update itself
    accumulate    gradients added to sums
    norm          the sum of squares of the gradients, in the same order as on the CPU
    fold          the constants of a step, from step numbers that live on the GPU

Every argument of a kernel is a number, such as an address or a count. Array arguments cost microseconds.
"""
