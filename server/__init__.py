"""The parameter server: holds parameters and Adam's state, and applies the gradients that workers push.

Installed as numba_adam.server. A map; each folder imports only what stands above it:

    memory, config  how much memory the process may use; every setting
    model/          what a model is: spec, push_ledger (order, duplicates, versions: decisions alone), arena, digests
    storage/        what lies on disk: snapshot, data_folder, manifest, last_run, deletions, durable
    runtime/        the running server without its network: host (models by name, sessions, pushes, pulls),
                    model, apply_thread, launcher and slices, receive, budget, pull_copy, snapshot_writer, model_loader
    transport/      the gRPC edge: service, gate (which calls are taken), watch (which are ended), health, reflection
    embedded        `Server`: start, address, stop
    main            `serve`: until SIGTERM
"""
