"""The cases, one file for each theme: each has a tuple CASES."""
