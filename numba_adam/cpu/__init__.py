"""The CPU backend: the update of arrays in this host's memory."""
