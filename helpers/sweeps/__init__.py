"""Sweeps: a notebook executed over a grid of parameters, on one machine or a cluster, nothing lost (docs/sweeps.md).

    grid -> plan -> engines: run(job) ... run(job) -> table, page

What a run *is* decides its `identity`: the notebook's code, its parameters, the helpers that it reaches and the data
settings. Its folder has that name, and its record is written last and at once; so whatever is cut off where, the same
command later does what is missing and nothing twice.
"""
