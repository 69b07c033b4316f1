"""Explanation-quality metrics, one signature for all: heat maps [N, H, W] in, one value a sample out.

    frame = compare({"gradient": gradient, "ours": explain}, model, x, target)  # method, metric, image, value

Detection metrics (`helpers.metrics.detection`) compare maps with masks. The others need the model: ``metric(model, x,
target, heat)`` hides parts of images (`faithfulness`, `imputation`), ``metric(explain, model, x, target)`` changes
images (`stability`) or weights (`randomisation`), with ``explain(model, x, target) -> heat``, the signature of
`helpers.attribution`; `complexity` and `localisation` look at maps only. `METRICS` says which values are better.
Values are float64 [N] on the CPU. An image's score does not depend on its batch mates, and draws come from ``seed``
without touching the global generators. The model is run in eval mode and left as found.

All stand here, with Quantus 0.6 as a reference in the tests: of its metrics for images none is both right and fast.
Each module says what is wrong there; its sparseness and complexity are right, and a few lines each.
"""

from helpers.metrics.complexity import entropy, sparseness
from helpers.metrics.detection import (
    THRESHOLDS,
    DetectionCurve,
    _exceeded,
    detection_curve,
    detection_range,
    detection_rates,
    mean_detection,
    range_length,
)
from helpers.metrics.faithfulness import (
    faithfulness_correlation,
    infidelity,
    irof,
    pixel_flipping,
    selectivity,
    superpixels,
)
from helpers.metrics.imputation import road
from helpers.metrics.localisation import pointing_game, relevance_mass
from helpers.metrics.randomisation import efficient_mprt, mprt, rank_correlation
from helpers.metrics.stability import lipschitz, local_lipschitz, relative_stability, sensitivity
from helpers.metrics.table import CONTROLS, METRICS, Metric, compare

__all__ = [
    "CONTROLS", "DetectionCurve", "METRICS", "Metric", "THRESHOLDS", "_exceeded", "compare",
    "detection_curve", "detection_range", "detection_rates", "efficient_mprt", "entropy", "faithfulness_correlation",
    "infidelity", "irof", "lipschitz", "local_lipschitz", "mean_detection", "mprt", "pixel_flipping", "pointing_game",
    "range_length", "rank_correlation", "relative_stability", "relevance_mass", "road", "selectivity", "sensitivity",
    "sparseness", "superpixels",
]  # fmt: skip
