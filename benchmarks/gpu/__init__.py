"""The checks and measurements that need a GPU: `make gpu`, or python -m benchmarks.gpu.

    kernels       every kernel of the package
    kept          whether a second process loads them all, and how long first launches take
    correctness   the bits of every kernel against the CPU's
    speed         against PyTorch's fused AdamW, NVIDIA Apex's and bitsandbytes' where they are installed, and the GPU's
                  own copy
    report        what is printed and saved

In Numba's simulator (NUMBA_ENABLE_CUDASIM=1) everything runs with a few elements. This tests the program; its times
mean nothing.
"""
