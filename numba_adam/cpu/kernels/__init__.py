"""The CPU's compiled loops around the element mathematics. Everything here imports Numba; nothing else of `cpu` does.

From the bottom up; each module imports only those above it:

    vector_width  how wide the vectors of each kernel are
    cache         where the machine code is kept between processes
    collector     Python's garbage collector, paused while a kernel compiles
    pipeline      the passes that compile a kernel
    compile       how kernels are compiled: strict IEEE arithmetic, cached
    intrinsics    arrays at an address; the floating-point environment of the CPU
    prefetch      loads issued before their values are needed
    search        binary search
    lanes         vectors of float32 numbers, for loops that the compiler cannot make into vector code
    roots         square roots of vectors, some from estimates, with the same bits
    formats       arrays in any number format, decoded and encoded
    element       the element mathematics, and its loops over arrays
    eight_bit     moments in 8 bits, decoded and encoded
    eight_bit_blocks  the update of whole blocks of 8-bit moments
    pairs         the update of bfloat16, two elements to a word
    constants     the constants of a step, written to and read from rows
    launch_plan   what a launch works through: addresses, formats, constants
    gather        the addresses of many NumPy arrays, validated in one pass
    prepare       the plan of a step: addresses, validation, constants
    fast_path     the same for one parameter alone
    ranges        all elements of a plan as one range, divided between threads
    update        the update of arrays that all have the compute dtype
    tiles         the update tile by tile: any formats, and optional work fused into the pass
    fused_float32 float32 with its average and its bfloat16 copy, in one loop
    mixed_formats the kernels of both
    norm          the sum of squares of the gradients, in an order that no thread count changes
    accumulate    gradients added to sums
    convert       an array's elements in another format
    finite        the first NaN or infinity of an array
    tasks         the one parallel kernel, which calls the others
    threads       how many threads a launch takes, and the lock around parallel launches
"""
