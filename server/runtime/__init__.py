"""The models of a running server, without its network. Requests and answers are plain values.

    runtime            assembles the parts; starts, saves, stops
    registry           the models by name
    lifecycle          creates and deletes models; creation decides whether an existing model satisfies a request
    model_loader       restores models from snapshots, and makes new ones
    ready              the compiled kernels that models need, before a push waits for them
    model              one model: its spec, memory, ledger and step
    keeping            what keeps a model's events; keeper at the level `process`, disk_keeper at `disk`
    disk_recovery      replays the journal on disk when the server starts
    sessions           opens workers' sessions
    steering           changes of a model's settings; measuring clips the norm of gradients as the library does
    pushes             one push, from its header to its answer
    receive            receives a transfer into memory and checks it
    guarding, rates    the limits of a model's pushes: norm, element, rate
    call_queue         runs the changes of a model one at a time
    slices, launcher   the step over a model's arrays, in slices, on one thread or many
    pulls, pull_copy   waits for a version; shares one copy of it among the callers
    narrowing          the payload of a pull, rounded to 16 bits if the caller asks for it
    waiters            limits how many calls wait
    small_calls        gives calls about small models priority over large updates
    snapshot_writer    snapshots by timer, after pushes and on request; snapshot_requests answers those requests
    budget             the memory budget of models and transfers
    tally              counts what happens to a model, and refused calls, for the metrics
    model_errors       adds a model's state to errors about it

May import `server.storage` and what stands below it, and the library.
"""
