"""What the user sets: hyperparameters, param groups, options, the treatment of a step's gradients; all checked here."""
