"""One model as plain values and decisions: no threads, no disk, no network.

    names, tensors   which names, ids and arrays are allowed
    spec             what a model is; how two differ
    requests         what callers ask of a model; whether a push fits it
    push_ledger      which pushes were applied, and what each was answered
    digests          what tells a repeated push from another one
    arena            the model's memory
    records          checks of what is read back from disk

May import NumPy, `numba_adam.errors`, `numba_adam.settings`, `numba_adam.ps.modes` and `numba_adam.ps.detail`.
"""
