"""PiNets: pointwise-interpretable networks, whose prediction is computed from its explanation (arXiv 2601.04378)."""
