"""The data folder on disk, and the files in it.

    data_folder      the models' snapshots: written, restored, deleted
    snapshot         the snapshot file
    snapshot_files   the names of those files
    segment          a part of the journal of the level `disk`; segments are those of one model
    journal          the journal of the level `process`, in the memory_folder
    memory_owner     says whose a memory_folder is
    manifest         the list of models, and how the last run ended
    holder           waits for a killed process that still holds the folder's lock
    last_run         decides whether a model's newest snapshot is its last state
    deletions        the newest deletions of models
    unused           keeps servers away from a folder
    verification     every checksum of a folder that no server uses
    restoring        goes back to a kept snapshot, without a server
    exchange         exports and imports models, as a safetensors_file
    token_file       the access tokens: their hashes, scopes and ends
    keys             keys from outside the folder, and the tags that they make; a seal is that of a journal's record
    checked_json     JSON with a checksum and a tag
    durable          files and folders that survive a crash and belong to one user

May import `server.model`.
"""
