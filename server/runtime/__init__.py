"""The models of a running server: pushes and pulls, the threads that apply and save, the memory budget."""
