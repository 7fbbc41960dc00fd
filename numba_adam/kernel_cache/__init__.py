"""Where compiled kernels of the CPU and of GPUs are kept between processes. Imports no compiler."""
