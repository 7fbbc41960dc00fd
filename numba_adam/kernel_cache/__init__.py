"""Where compiled kernels are kept between processes, the CPU's and a GPU's. Imports no compiler."""
