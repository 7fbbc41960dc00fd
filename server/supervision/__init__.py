"""Starts the serving process, restarts it after a crash, and passes signals on. It holds no models and no port.

    supervisor   the loop: start, wait, pass signals on, restart
    child        one serving process: fork, reports, end
    endings      why a process died, in words
    notify       tells systemd how the service is

Imports the standard library and the error tree, so that the supervising process stays small and has one thread.
"""
