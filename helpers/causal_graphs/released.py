"""What the authors' 2022 release stores of LeNet (spec explainnn, sections 3.7 and 7): facts to compare with.

Its weights were never published, so that no number can be met exactly. Nothing here is from a table of the papers.
"""

from __future__ import annotations

from typing import Final

from helpers.ledger import Kind

KIND: Final[Kind] = "released"
PAPER: Final[Kind] = "paper"
"""Of the claims that the abstracts make in words: explanations that are more stable and more faithful."""

COUNTS: Final = {"fc3": (13, 84), "fc2": (8, 120), "fc1": (8, 16), "conv2": (3, 6)}
"""MNIST, class 3: (causes, lower nodes) of each layer (section 3.7)."""

APPEARANCE: Final = {
    0.0: 96.9, 0.01: 82.7, 0.02: 90.0, 0.05: 69.2, 0.10: 51.5, 0.15: 38.3, 0.20: 27.0, 0.30: 30.0, 0.40: 25.4,
    0.50: 15.5,
}  # fmt: skip
"""MNIST, class 3, fc3: mean appearance in % by the largest soft value (section 7.2)."""

JACCARD: Final = {
    0.0: 0.96, 0.01: 0.89, 0.02: 0.91, 0.05: 0.66, 0.10: 0.49, 0.15: 0.41, 0.20: 0.40, 0.30: 0.25, 0.40: 0.18,
    0.50: 0.01,
}  # fmt: skip
"""The same: mean pairwise Jaccard index, two empty sets counting 0."""
