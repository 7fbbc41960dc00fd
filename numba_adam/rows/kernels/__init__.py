"""The compiled loops over rows of embedding tables. Everything here imports Numba."""
