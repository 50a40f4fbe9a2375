"""Several processes as one server: front ends answer calls and decode, one device process runs the models.

A supervisor starts and replaces them. `control` and `link` are the two kinds of socket between them, `slots`
the memory that they share; docs/operations.md tells the whole.
"""
