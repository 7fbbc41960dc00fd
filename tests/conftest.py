"""What all tests share: how Hypothesis looks for examples. Nothing here or below depends on how fast the machine is."""

import os

import hypothesis

# A busy machine may take any time for an example or for making one; a failure prints what reproduces it.
hypothesis.settings.register_profile(
    "house", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
# Thousands of runs that are to fail at the first: few examples, always the same, and no time spent on a smaller one.
hypothesis.settings.register_profile(
    "mutants",
    hypothesis.settings.get_profile("house"),
    max_examples=30,
    derandomize=True,
    database=None,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "house")
hypothesis.settings.load_profile(PROFILE)
