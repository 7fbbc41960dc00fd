"""The demonstration behind `numba-adam demo`: workers train on one server, which is killed half-way.

    story.py      the steps of the demonstration, in order; start reading here
    processes.py  the server and the workers as processes
    worker.py     what a worker does: pull, compute a gradient, push
    network.py    the classifier and its gradient in NumPy;   torch_network.py  the same gradient in PyTorch
    digits.py     the data
    picture.py    the picture
    comparison.py the three modes of training beside each other, and their picture

Imports the client and the packages of the `demo` extra, inside the functions that need them. The server runs as a
separate process and is never imported. examples/digits.py does the same as one short program.
"""
