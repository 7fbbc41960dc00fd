"""The parameter server's client. Installed as numba_adam.client."""
