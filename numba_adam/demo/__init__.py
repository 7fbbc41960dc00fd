"""The demonstration behind `numba-adam demo`."""
