"""Version 1 of the protocol, generated from proto/numba_adam/ps/v1 by tools/generate_proto.py."""
