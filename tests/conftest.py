"""What all tests share: how Hypothesis looks for examples. Nothing here or below depends on how fast the machine is."""

import hypothesis

# A busy machine may take any time for an example or for making one; a failure prints what reproduces it.
hypothesis.settings.register_profile(
    "house", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("house")
