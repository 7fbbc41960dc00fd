"""The settings of an optimizer and of a step, all validated here, and the contract that every backend fulfils.

From the bottom up:

    scalars          numbers as callers have them: Python's, NumPy's, one-element arrays
    hyperparameters  Adam's hyperparameters, one frozen record
    limits           the ranges that a compute dtype can represent
    options          the state that an optimizer keeps, and its formats
    group_keys, fixed, param_groups    param groups, as in PyTorch
    folding          hyperparameters as the numbers that kernels fold into constants
    scaling          the treatment of one step's gradients
    results          the result of a step
    step_arrays      the arrays that a step writes, and the work fused into its pass
    columns          the same arrays, borrowed and validated against each other
    members          the parameters that one backend updates together
    contract         the methods of a backend, and the order of their calls

May import `numerics`, `interop` and the errors.
"""
