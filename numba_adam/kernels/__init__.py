"""Compiled loops around `numba_adam.element`. Everything in here imports Numba; nothing outside does at import time.

compile.py     how every kernel is compiled: strict, cached, never stale
cache.py       where machine code is kept between processes
intrinsics.py  arrays at an address; the CPU's floating-point environment
update.py      the update over a table of arrays
threads.py     how many threads, and the lock around parallel launches
finite.py      the first NaN or infinity of an array
gather.py      addresses and checks of many NumPy arrays at once
"""
