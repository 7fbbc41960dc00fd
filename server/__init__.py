"""The parameter server: it holds parameters and Adam's state, and applies the gradients that workers push.

Installed as numba_adam.server. One push, from the socket to the acknowledgement:

    1. transport/gate       admits the call if the limit allows; its first message is the push's header
    2. transport/service    finds the model; transport/messages turns the header into a plain PushRequest
    3. runtime/pushes       computes a digest of the header and asks the model
    4. model/push_ledger    judges: a repeat gets its earlier answer, a stale session an error, a new push goes on
    5. runtime/receive      copies each chunk into memory from runtime/budget, checks the checksum and every value
    6. runtime/call_queue   waits until the pushes that came before are applied
    7. runtime/slices       makes the step: the library's Adam kernel over the arrays of model/arena
    8. model/push_ledger    counts the new version and keeps the answer, so that a retry gets it again
    9. runtime/snapshot_writer  starts a snapshot if the model has moved far enough since the last one
    10. transport/service   encodes the acknowledgement: the version, and where the state stands

The folders, from the bottom up; each imports only what stands above it in this list:

    memory, config   how much memory the process may use; every setting
    model/           one model as plain values and decisions: no threads, disk or network
    storage/         what lies on disk
    runtime/         the models of a running server: threads, memory budget, pushes, pulls, snapshots
    transport/       gRPC: admits calls, converts messages, ends stalled calls
    supervision/     a second process, which starts this one again after a crash
    grpc_experiments what `numba-adam serve` switches on in gRPC
    embedded         `Server`: start, address, stop
    main             `serve`: until a signal
"""
