"""One model as plain values and decisions: no threads, no disk, no network.

    names, tensors   the allowed names, ids and arrays
    spec             the properties of a model that do not change
    steering         the settings that may change while it trains
    changes          the changes of the settings, and the answers to their requests
    requests         callers' requests as plain values; checks that a push fits a model
    push_ledger      which pushes were applied
    answers          the answers to pushes, which the ledger keeps
    rounds, clocks   the open round of the mode "sync"; the clocks of the mode "ssp"
    digests          digests that recognize a repeated push
    arena            the model's memory
    sharing          which version the memory has, for other processes that read it
    records          checks of records read from disk

May import NumPy, `numba_adam.errors`, `numba_adam.settings`, and of `numba_adam.ps` the modes, details, guards and
schedules.
"""
