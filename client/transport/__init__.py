"""How calls reach the server: the gRPC channel, retries, forks and signals."""
