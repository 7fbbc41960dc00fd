"""The service in ten lines: fit a straight line through a parameter server.

First start a server in another terminal:   numba-adam serve --data-dir /tmp/adam
Then run this program, in several terminals at once if you like. All of them train the same model.
"""

import sys

import numpy as np

from numba_adam.client import ParameterClient

random = np.random.default_rng()  # each worker sees its own data
x = random.standard_normal(1000)
y = 3.0 * x - 2.0

with ParameterClient(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051") as client:
    model = client.create_model("line", {"slope": np.zeros(1), "offset": np.zeros(1)}, lr=0.1, exist_ok=True)
    params = model.pull()
    for _ in range(300):
        error = params["slope"] * x + params["offset"] - y
        params = model.push_pull({"slope": np.array([2 * (error * x).mean()]), "offset": np.array([2 * error.mean()])})

print(f"slope {params['slope'][0]:.3f}, offset {params['offset'][0]:.3f} at version {model.version}")
