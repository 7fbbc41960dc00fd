"""The checks and measurements that need a GPU: `make gpu`, or python -m benchmarks.gpu.

    stages         the stages in their order, and each one's share of the time
    runner         runs the stages in processes of their own, within a budget of seconds
    worker         such a process: runs the items of one stage, and adds each finding to the journal when it is made
    journal        the findings, one line of JSON each, on disk at once: a run may be cut at any moment
    report         the journal as text
    machine        the GPU, and the versions of all that takes part

    first          the first step of a process, with an empty and with a full kernel cache
    kernels, kept  every kernel of the package; whether a second process loads them all
    correctness    the bits of every kernel and option against the CPU's
    doors          the bits through CuPy, PyTorch, Numba, streams, CUDA graphs and the adapter; what is refused
    memory_check   a small run under NVIDIA's compute-sanitizer
    speed          against PyTorch, NVIDIA Apex and bitsandbytes, and the GPU's own copy
    tuning         the same step with other sizes of thread blocks and chunks
    suite          the tests under tests/cuda/simulated, on the GPU instead of the simulator

Nothing is installed: it runs with the Python that starts it and the packages that this one has, and says which. In
Numba's simulator (NUMBA_ENABLE_CUDASIM=1) everything runs with a few elements. This tests the program; its times mean
nothing.
"""
