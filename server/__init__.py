"""The parameter server. Installed as numba_adam.server."""
