"""Causal graphs: which nodes of a trained network a logit hangs on, found by cutting paths (arXiv 2305.08950)."""
