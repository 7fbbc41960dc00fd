"""The parameter server: holds parameters and Adam's state, and applies the gradients that workers push.

Installed as numba_adam.server. A map, from the pure core outwards; each file imports only what stands above it:

    memory      how much memory the process may use
    config      every setting, from flags, environment, a TOML file or its default
    spec        what a model is, and whether a push fits it
    machine     order, duplicates, versions, staleness: decisions without gRPC, clock, threads or disk
    arena       a model's flat arrays in one shared mapping
    budget      how many bytes the server may hold, and the pooled slots that transfers are staged in
    receive     a transfer taken chunk by chunk into a slot, checked on the way
    snapshot    the snapshot file: written, read, verified
    durable     folders and files that are this user's alone, and on disk
    manifest    how the last run on a data folder ended
    past        whether a snapshot is the last of its model's history
    store       the data folder: which snapshot is the newest, which one still holds
    engine      what changes one model, or writes its files: one call at a time, in order; no thread of its own
    launcher    the one thread that makes parallel launches, the slices of all models' large updates in turns
    slices      the update over a model's arrays, in slices of a few milliseconds
    model       one model: spec, arena, machine, engine and update
    image       one version's parameters, copied for those who pull it
    archive     snapshots on request, by timer and by count, those of different models beside each other
    host        the server without gRPC: models, pushes, pulls, snapshots
    watch       ends calls whose other side keeps the server waiting
    permits     who waits for what, and in which order
    in_flight   the calls that a server that stops waits for
    requests    parses requests within the budget
    gate        how many calls there may be, and which threads they take
    descriptors how many connections leave enough for files
    service     the gRPC edge
    health      whether the server serves
    reflection  what it serves
    listen      every address of a name, or none
    embedded    `Server`: start, address, stop
    main        `serve`: until SIGTERM
"""
