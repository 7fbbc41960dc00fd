"""The network's edge: the gRPC service, its limits, the standard health and reflection services."""
