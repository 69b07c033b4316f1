"""What is known of the paper's results (arXiv 2309.08395; spec cnn_lsx, section 7).

Its claims are known in words. Its numbers were recalled, not read: they are shown as *not verified*, and no verdict
rests on them.
"""

from __future__ import annotations

from typing import Final

from helpers.ledger import Kind

PAPER: Final[Kind] = "paper"
"""Of claims in words."""
RECALLED: Final[Kind] = "not verified"

FEW: Final = "1,200 digits"
"""What the released networks were trained on."""

ACCURACY: Final = {
    "clean/cnn": 89.83, "clean/lsx": 91.59, "decoy/cnn": 63.52, "decoy/lsx": 78.99, "decoy-unconf/cnn": 86.88,
    "decoy-unconf/lsx": 88.43,
}  # fmt: skip
"""Test accuracy in % by group, clean MNIST with 1,200 training images. Recalled."""
