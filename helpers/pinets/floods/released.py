"""Published numbers of the floods study (spec pinets, sections 6.2 to 6.5): one seed, test split of Sen1Floods11."""

from __future__ import annotations

KIND = "released"
DATA, ENCODER = "Sen1Floods11", "Prithvi-EO-1.0-100M"

PARAMETERS = {"encoder, 4 blocks": 29_534_208, "UperNet": 3_120_576, "upsampler": 1_543}

# The measures by their names in `evaluate.report`; areas in pixels of tiles of 256 x 256.
TABLE = {
    "segnet": {
        "released_mae": 2582.0,
        "released_iou_water": 0.332,
        "released_iou_dry": 0.814,
        "tdr_water": 0.904,
        "tdr_dry": 0.940,
    },
    "pinet": {
        "released_mae": 1110.0,
        "released_iou_water": 0.256,
        "released_iou_dry": 0.819,
        "tdr_water": 0.802,
        "tdr_dry": 0.959,
    },
}
PIXELS = 256**2

CHIPS = (33, 11, 20, 27, 63, 84)
"""Rows of the test list, whose chips the published figure shows; the first of them has one of its own."""
