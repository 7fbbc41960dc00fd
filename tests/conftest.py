"""Settings of all tests: Hypothesis without deadlines, and a default handler for Ctrl-C."""

import os
import signal

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

# Whoever starts the tests in the background may have them ignore Ctrl-C, and so the programs that tests start and end
# with it. A handler of Python's own is taken back in those.
signal.signal(signal.SIGINT, signal.default_int_handler)
