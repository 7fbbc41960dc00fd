"""How calls reach the server: the gRPC channel, tries again, forks and signals."""
