"""What 8-bit state costs in accuracy: ours, bitsandbytes and torchao beside float32 state.

    python -m benchmarks.evidence

    optimizers   the contestants, all over the same NumPy memory
    problem      what is trained: parameters, and the gradient at a step
    digits       the network of the demonstration
    language     a small transformer on text that comes with Python
    streams      random gradients without a model, made to be hard
    measure      trains, replays, compares
    tables       what is printed

Speed is measured elsewhere (`python -m benchmarks`): nothing here is timed.
"""
