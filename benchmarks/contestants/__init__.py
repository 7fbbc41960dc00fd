"""The optimizers to compare, one file each. All implement `contestant.Contestant`.

A file imports its library when a contestant is made, and raises `MissingError` if it cannot.
"""
