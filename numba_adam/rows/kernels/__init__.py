"""The compiled loops over rows. Everything in here imports Numba."""
