"""The library in ten lines: fit a straight line with Adam, in place, on NumPy arrays."""

import numpy as np

import numba_adam as na

random = np.random.default_rng(0)
x = random.standard_normal(1000)
y = 3.0 * x - 2.0

params = {"slope": np.zeros(1), "offset": np.zeros(1)}
opt = na.Adam(params, lr=0.1)
for _ in range(300):
    error = params["slope"] * x + params["offset"] - y
    opt.step({"slope": np.array([2 * (error * x).mean()]), "offset": np.array([2 * error.mean()])})

print(f"slope {params['slope'][0]:.3f}, offset {params['offset'][0]:.3f}")
