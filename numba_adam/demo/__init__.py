"""The demonstration behind `numba-adam demo`: workers train on one server, which is killed half-way.

    story.py      what happens, in order; start reading here
    processes.py  the server and the workers as processes
    worker.py     what a worker does: pull, compute a gradient, push
    network.py    the classifier and its gradient in NumPy;   torch_network.py  the same gradient in PyTorch
    digits.py     the data
    picture.py    the picture

Imports the client and what the `demo` extra installs, inside the functions that need it. The server is a process
of its own and is never imported. The same in one readable file: examples/digits.py.
"""
