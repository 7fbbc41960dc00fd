"""Compiled loops around the element mathematics. Everything in here imports Numba; nothing outside does at import time.

From the bottom up; each imports only what stands above it:

    cache         machine code kept between processes: which sources and versions it is of
    compile       how every kernel is compiled: strict, cached, never stale
    intrinsics    arrays at an address; the CPU's floating-point environment
    prefetch      loads issued before their values are needed
    search        binary search
    element       the element mathematics, and its loops over arrays
    formats       arrays in any format, decoded and encoded
    eight_bit     moments in 8 bits
    pairs         bfloat16, two elements to a word
    job           a table's arrays and the plan of a step, passed to a kernel as one
    gather        where many NumPy arrays lie, and whether they are what they must be
    prepare       the plan of a step: addresses, checks, constants
    fast_path     the same for one parameter alone
    ranges        all elements of a plan as one range, cut for threads
    update        the update itself, of plain arrays
    tiles         the update tile by tile: other formats, and all that is done beside it
    fused_float32 float32 with its average and its bfloat16 copy, in one loop
    mixed_formats the kernels of both
    norm          the sum of squares of the gradients, in an order that no thread changes
    accumulate    gradients added to sums
    convert       an array's elements in another format
    finite        the first NaN or infinity of an array
    threads       how many threads, and the lock around parallel launches
"""
