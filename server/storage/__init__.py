"""What lies on disk: the data folder and the files in it.

    data_folder      the models' snapshots: written, restored, deleted
    snapshot         the snapshot file
    manifest         which models there are, and how the last run ended
    last_run         whether a model's newest snapshot is its last state
    deletions        which models were deleted
    durable          files and folders that survive a crash and belong to one user

May import `server.model`.
"""
