"""The models of a running server, without its network. Requests and answers are plain values.

    runtime            puts the parts together; starts, saves, stops
    registry           the models by name
    lifecycle          creating and deleting models; creation decides whether one that exists will do
    model_loader       restores models from snapshots, and makes new ones
    model              one model: its spec, memory, ledger and step
    sessions           opening workers' sessions
    pushes             one push, from its header to its answer
    receive            a transfer taken into memory and checked
    call_queue         runs what changes a model, one call at a time
    slices, launcher   the step over a model's arrays, in slices, on one thread or on many
    pulls, pull_copy   waiting for a version; a copy of it for those who pull
    waiters            how many calls may wait
    small_calls        makes large updates give way to calls about small models
    snapshot_writer    snapshots by timer, after pushes and on request; snapshot_requests answers the last
    budget             the memory that models and transfers may take
    model_errors       adds a model's state to errors about it

May import `server.storage` and what stands below it, and the library.
"""
