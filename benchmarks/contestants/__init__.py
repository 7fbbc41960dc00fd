"""The optimizers that are compared, one file each, behind the face of `contestant.Contestant`.

A file imports its library when a contestant is made, and raises `MissingError` if it cannot.
"""
