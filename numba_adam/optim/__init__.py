"""What an optimizer adds to its backends: the choice of one, gradients in order, state dicts."""
