"""The figure about scores of heat maps: stability against faithfulness, every method beside the controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from helpers.figures import BLACK, COLOURS, GREY, Picture, picture, style, tint

METHODS = {
    "spatial_do": "spatial do", "spatial_do_1x1": "spatial do 1×1", "spatial_do_2x2": "spatial do 2×2",
    "act_grad": "activation × gradient on causes", "channel_activation": "channel activation",
    "contribution": "contribution", "reference": "the release’s recipe", "gradient": "Saliency",
    "input_x_gradient": "Input × Gradient", "integrated_gradients": "Integrated Gradients",
    "gradient_shap": "GradientShap", "guided_backprop": "Guided Backprop", "deconvolution": "Deconvolution",
    "deep_lift": "DeepLIFT", "lrp": "LRP", "lime": "LIME", "grad_cam": "Grad-CAM", "occlusion": "Occlusion",
    "rise": "RISE", "random_map": "noise (control)", "constant_map": "constant (control)",
}  # fmt: skip
CAUSAL = ("spatial_do", "spatial_do_1x1", "spatial_do_2x2", "act_grad", "channel_activation", "contribution",
          "reference")  # fmt: skip
CONTROLS = ("random_map", "constant_map")
METRICS = {
    "irof": "IROF: area over the curve (higher: more faithful)",
    "lipschitz_minmax": "local Lipschitz estimate, maps scaled to [0, 1] (lower: more stable)",
    "lipschitz_max": "local Lipschitz estimate, maps divided by their maximum (lower: more stable)",
    "lipschitz_zscore": "local Lipschitz estimate, standardised maps (lower: more stable)",
    "lipschitz_none": "local Lipschitz estimate, maps as they come (lower: more stable)",
}


@style()
def metric_plane(
    panels: Mapping[str, pd.DataFrame], stable: str = "lipschitz_minmax", faithful: str = "irof"
) -> Picture:
    """E3 and E4, which must be read together: faithfulness over instability, a point a method with its standard errors;
    the best corner is the upper left. Causal maps are filled, controls crosses.

    ``panels``: by name (a class, a checkpoint), `evaluate.summarise`. What is far to the right stands at the edge, with
    its value.
    """
    figure = picture(0.8 + 5.0 * len(panels), 4.9)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    methods = [m for m in METHODS if any(m in set(table.method) for table in panels.values())]
    colours = dict(zip([m for m in methods if m in CAUSAL], COLOURS, strict=False))
    others = [m for m in methods if m not in CAUSAL and m not in CONTROLS]
    markers = dict(zip(others, "sv^DPXh<>d8p", strict=False))
    for ax, (name, table) in zip(axes, panels.items(), strict=True):
        values = {metric: table[table.metric == metric].set_index("method") for metric in (stable, faithful)}
        reach = values[stable]["mean"].drop("random_map", errors="ignore").max()
        edge = 1.25 * (reach if reach > 0 else 1.0)
        for method in methods:
            if method not in values[stable].index or method not in values[faithful].index:
                continue
            x, y = (values[metric].loc[method] for metric in (stable, faithful))
            look = _method(method, colours, markers)
            at, beyond = min(x["mean"], edge), x["mean"] > edge
            error = None if beyond else x.standard_error
            ax.errorbar(at, y["mean"], y.standard_error, error, "none", ecolor=tint(GREY, 0.5), elinewidth=1)
            ax.plot(at, y["mean"], gid=f"method:{name}:{method}", clip_on=False, zorder=3, **look)
            if beyond:
                ax.annotate(f"{x['mean']:.2g} →", (at, y["mean"]), (-8, 0), textcoords="offset points", fontsize=8.5,
                            ha="right", va="center")  # fmt: skip
        ax.set_title(name, fontsize=10)
        ax.set(xlim=(-0.03 * edge, 1.02 * edge), xlabel=METRICS[stable].replace(", maps", ",\nmaps"))
    axes[0].set_ylabel(METRICS[faithful])
    handles = [Line2D([], [], label=METHODS[m], **_method(m, colours, markers)) for m in methods]
    figure.legend(handles=handles, loc="outside right upper", title="filled: from the graph", alignment="left")
    return figure


def _method(method: str, colours: Mapping[str, str], markers: Mapping[str, str]) -> dict[str, Any]:
    """How a method looks."""
    if method in CONTROLS:
        return {"color": GREY, "marker": "x" if method == "random_map" else "+", "markersize": 8, "linestyle": "none"}
    if method in CAUSAL:
        return {"color": colours[method], "marker": "o", "markersize": 8, "linestyle": "none"}
    return {"color": BLACK, "marker": markers[method], "markersize": 6, "markerfacecolor": "white", "linestyle": "none"}
