"""What is raised where there is no CUDA to work with. To be moved into the tree of numba_adam/errors.py."""

from numba_adam.errors import NumbaAdamError


class CudaUnavailableError(NumbaAdamError, ImportError):
    """No CUDA package can be imported, or there is no GPU; the message says what to install."""
