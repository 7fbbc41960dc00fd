"""Shared by the client and the parameter server: generated messages, framing, checksums, the error table."""
