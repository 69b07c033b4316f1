"""The figures about many fits of the ToyShapes study (spec section 5.6): medians, spreads, ranges, success.

Each takes plain data, the table of `study.frame` or the records it was made from, shows the accepted fits of the groups
it finds there, and returns a `Picture`. Released values stand beside ours as white diamonds, never mixed with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Ellipse, Patch, Rectangle

from helpers import figures as shared
from helpers.figures import BLACK, GREY, LIGHT, Note, Picture, offsets, picture, style, tint
from helpers.metrics import detection_range
from helpers.pinets import released
from helpers.pinets.evaluate import LEVELS
from helpers.pinets.presets import GROUPS, LABELS, Groups
from helpers.pinets.study import scores

COLOURS = {"cnn": GREY, "naive": shared.ORANGE, "soft": shared.SKY, "pinet": shared.BLUE, "feedback": shared.GREEN,
           "ensemble": shared.PURPLE, "strong": shared.RED}  # fmt: skip
METHODS = {"grad_cam": "Grad-CAM", "input_x_gradient": "input × gradient", "smooth_grad": "SmoothGrad", "rise": "RISE",
           "kernel_shap": "Kernel SHAP", "deep_lift": "DeepLIFT", "lrp": "LRP", "random_map": "noise (control)",
           "constant_map": "constant (control)"}  # fmt: skip
MAJORITY = 0.647  # accuracy on the paper's test set of whoever always says "triangle"
ELLIPSE = 2.45  # full width of an ellipse's axis in sd: about half of a normal distribution (53 %) lies inside
MIN_FITS = 5  # fewer fits are shown as points alone: a violin or an ellipse would invent a distribution

Records = Iterable[Mapping[str, Any]]
Released = Mapping[str, Mapping[str, tuple[float, float, float]]]

# How the same thing looks in every figure: a fit, a released median, the majority rate.
_POINT = {"marker": "o", "markersize": 3.2, "color": BLACK, "alpha": 0.45, "linestyle": "none", "markeredgewidth": 0}
_DIAMOND = {"marker": "D", "markersize": 6, "markerfacecolor": "white", "markeredgecolor": BLACK, "linestyle": "none"}
_MAJORITY = {"color": BLACK, "linestyle": "--", "linewidth": 1.2}
_RELEASED = f"released: median of {released.FITS} fits"


@style()
def meaningfulness(
    table: pd.DataFrame, reference: Released = released.TABLE, target: str = "triangle"
) -> Picture:
    """Does the map find the shapes? Violins of the detection score by group, naive above optimal; medians marked.

    The lines stand at Grad-CAM's medians. Every fit is a point; groups of fewer than `MIN_FITS` fits have no violin.
    """
    groups = _accepted(table)
    figure = picture(9, 1.5 + 0.78 * len(groups))
    ax = figure.subplots()
    for y, (group, fits) in enumerate(groups.items()):
        for kind, shift, strength in (("naive", -0.2, 0.4), ("optimal", 0.2, 0.85)):
            values = fits[f"{kind}_score"].to_numpy(float)
            _strip(ax, values, y + shift, f"{group}:{kind}", COLOURS[group], strength)
            if known := reference.get(group, {}).get(f"{kind}_score"):
                ax.plot(known[0], y + shift, gid=f"released:{group}:{kind}", zorder=5, **_DIAMOND)
            ax.text(1.03, y + shift, f"{np.median(values):.2f}", va="center", fontsize=9, clip_on=False)
    ax.text(1.03, -0.72, "median", va="center", fontsize=9, color=GREY)
    handles = [Patch(color=tint(GREY, 0.4), label="naive: the map as it is"),
               Patch(color=tint(GREY, 0.85), label="optimal: thresholded where it scores best"),
               Line2D([], [], color=BLACK, linewidth=2.5, label="median"),
               Line2D([], [], **_POINT, label="one fit")]  # fmt: skip
    if any(group in reference for group in groups):
        handles.append(Line2D([], [], label=_RELEASED, **_DIAMOND))
    if "cnn" in groups:
        for kind, dashes in (("naive", (0, (2, 2))), ("optimal", (0, (6, 2)))):
            median = groups["cnn"][f"{kind}_score"].median()
            line = {"color": COLOURS["cnn"], "linestyle": dashes, "linewidth": 1.2}
            ax.axvline(median, gid=f"line:{kind}", zorder=1, **line)
            handles.append(Line2D([], [], label=f"Grad-CAM's median, {kind}", **line))
    ax.set(xlim=(0, 1), xlabel="detection score = TDR × TAR (1: all of the shapes, nothing else)")
    ax.set_title(f"Meaningful: does the map find the {target}s?")
    _name_rows(ax, [LABELS[group] for group in groups])
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _strip(ax: Axes, values: np.ndarray, y: float, name: str, colour: str, strength: float) -> None:
    """The distribution of ``values`` on a strip at height ``y``: violin, points, median."""
    point = _POINT
    if len(values) < MIN_FITS:
        point = _POINT | {"markersize": 7, "color": colour, "alpha": 1, "zorder": 4.5}
    elif np.ptp(values) > 0:
        violin = ax.violinplot([values], [y], orientation="horizontal", widths=0.36, showextrema=False)["bodies"][0]
        violin.set(facecolor=tint(colour, strength), alpha=1, linewidth=0, gid=f"violin:{name}")
    ax.plot(values, y + 0.09 * offsets(len(values)), gid=f"fits:{name}", clip_on=False, **point)
    for colour, width, gid in (("white", 4.5, None), (BLACK, 2.5, f"median:{name}")):
        ax.plot([np.median(values)] * 2, [y - 0.17, y + 0.17], color=colour, linewidth=width, zorder=4, gid=gid)


@style()
def detection_plane(table: pd.DataFrame) -> Picture:
    """Detection against abstraction at the optimal threshold: a point a fit, an ellipse a group, curves of equal score.

    The ellipse is that of the covariance, its full widths `ELLIPSE` sd; fewer than `MIN_FITS` fits have none. The
    second panel enlarges a corner of the first, the third a corner of the second.
    """
    groups = _accepted(table)
    figure = picture(11, 4.3)
    panels = figure.subplots(1, 3)
    windows = [((0, 1), (0, 1), (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)), ((0.8, 1), (0.8, 1), (0.7, 0.8, 0.9)),
               ((0.96, 1), (0.9, 1), (0.88, 0.92, 0.96))]  # fmt: skip
    for ax, (x, y, curves) in zip(panels, windows, strict=True):
        for group, fits in groups.items():
            _cloud(ax, fits.optimal_tdr.to_numpy(float), fits.optimal_tar.to_numpy(float), group)
        for score in curves:
            _equal_score(ax, score, x, y)
        ax.set(xlim=x, ylim=y, xlabel="true detection rate (TDR)", box_aspect=1)
        ax.spines[:].set_visible(True)
        ax.locator_params(nbins=5)
    panels[0].set(ylabel="true abstraction rate (TAR)", title="All fits")
    panels[1].set_title("Its corner, enlarged")
    panels[2].set_title("That one's corner")
    for outer, inner in zip(panels[:-1], panels[1:], strict=True):
        _connect(outer, inner)
    dot = {"marker": "o", "linestyle": "none"}
    handles = [Line2D([], [], color=COLOURS[group], label=LABELS[group], **dot) for group in groups]
    handles.append(Line2D([], [], color=LIGHT, linewidth=1, label="equal score TDR × TAR"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _cloud(ax: Axes, x: np.ndarray, y: np.ndarray, group: str) -> None:
    size = 3.2 if len(x) >= MIN_FITS else 6
    ax.plot(x, y, gid=f"fits:{group}", **_POINT | {"color": COLOURS[group], "alpha": 0.7, "markersize": size})
    if len(x) < MIN_FITS:
        return
    variances, directions = np.linalg.eigh(np.cov(x, y))
    height, width = ELLIPSE * np.sqrt(variances.clip(0))  # ascending
    shape = {"width": width, "height": height, "angle": np.degrees(np.arctan2(directions[1, 1], directions[0, 1]))}
    shape |= {"xy": (x.mean(), y.mean()), "color": COLOURS[group]}
    ax.add_patch(Ellipse(**shape, alpha=0.25, linewidth=0))
    ax.add_patch(Ellipse(**shape, fill=False, linewidth=1.5, gid=f"ellipse:{group}"))


def _equal_score(ax: Axes, score: float, x: tuple[float, float], y: tuple[float, float]) -> None:
    tdr = np.linspace(max(x[0], score / y[1]), x[1], 100)
    ax.plot(tdr, score / tdr, color=LIGHT, linewidth=1, zorder=0, gid=f"score:{score:.2f}")
    enters = max(x[0], score / (y[0] + 0.97 * (y[1] - y[0])))  # the curve, from the top or the left
    place = {"xytext": (2, -2), "textcoords": "offset points", "va": "top"}
    ax.annotate(f"{score:g}", (enters, score / enters), fontsize=8, zorder=6, **place)


def _connect(outer: Axes, inner: Axes) -> None:
    """Frame in ``outer`` what ``inner`` shows, and join the two."""
    (left, right), (low, high) = inner.get_xlim(), inner.get_ylim()
    line = {"edgecolor": BLACK, "linewidth": 0.8}
    outer.add_patch(Rectangle((left, low), right - left, high - low, fill=False, zorder=4, clip_on=False, **line))
    for y, end in ((low, (0, 0)), (high, (0, 1))):
        joint = ConnectionPatch((right, y), end, "data", "axes fraction", axesA=outer, axesB=inner, alpha=0.5, **line)
        joint.set_in_layout(False)
        outer.figure.add_artist(joint)


@style()
def ease_of_tuning(records: Records, reference: Mapping[str, Any] = released.DETECTION_RANGE) -> Picture:
    """Which thresholds do? One bar a fit, from the lowest to the highest threshold whose score exceeds the level.

    Bars of a group are sorted by length in decades; a fit that no threshold serves leaves its line empty.
    """
    groups = _by_group(records)
    figure = picture(10.5, 1.4 + 0.8 * len(groups))
    panels = figure.subplots(1, len(LEVELS), sharex=True, sharey=True)
    for column, (ax, level) in enumerate(zip(panels, LEVELS, strict=True)):
        for y, (group, members) in enumerate(groups.items()):
            found = [detection_range(scores(record), level) for record in members]
            ends = sorted((f for f in found if f), key=lambda f: f[0] / f[1])  # the longest first
            rows, width = _rows(y, len(members))
            low, high = np.array(ends).reshape(-1, 2).T
            look = {"color": COLOURS[group], "linewidth": 0.5, "gid": f"range:{group}:{level}"}
            ax.barh(rows[: len(ends)], high - low, width, low, edgecolor=COLOURS[group], **look)
            text = f"{len(ends)}/{len(members)}"
            if group in reference:
                text += f"\n({reference[group][column][0]}/{released.FITS})"
            ax.text(1.25, y, text, va="center", fontsize=8.5, clip_on=False)
        ax.set(xscale="log", xlim=(1e-4, 1), xlabel="threshold (share of the maximum)", title=f"score > {level:g}")
        for y in range(1, len(groups)):
            ax.axhline(y - 0.5, color=LIGHT, linewidth=0.6)
        _name_rows(ax, [LABELS[group] for group in groups])
    note = "right of each panel: fits that some threshold serves" + (" (released)" if reference else "")
    figure.text(0.995, 0.005, note, ha="right", va="bottom", fontsize=9, color=GREY)
    figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))
    return figure


@style()
def recursive_accuracy(
    table: pd.DataFrame, majority: float = MAJORITY, reference: Released = released.TABLE
) -> Picture:
    """Is the explained part enough? Bars to the accuracy on the images; the pale overlay is the shift, what is lost of
    it when the model sees the explained part alone. One bar a fit, sorted by shift.

    Ensembles vote by the mean logit; dashes show them by the bundle's OR rule, to which their released median belongs.
    """
    groups = _accepted(table)
    figure = picture(10.5, 4.6)
    ax = figure.subplots()
    handles = [Patch(facecolor=GREY, label="accuracy on the explained part alone"),
               Patch(facecolor=tint(GREY, 0.25), label="shift: what of the accuracy is lost"),
               Line2D([], [], label=f"always the majority: {majority:.3f}", **_MAJORITY)]  # fmt: skip
    if any(group in reference for group in groups):
        handles.append(Line2D([], [], label=_RELEASED, **_DIAMOND))
    dash = {"color": BLACK, "linestyle": "none", "marker": "_", "markersize": 8, "markeredgewidth": 2}
    for x, (group, fits) in enumerate(groups.items()):
        fits = fits.sort_values("shift")
        places, width = _rows(x, len(fits))
        width *= 0.9 if len(fits) <= 10 else 1  # gaps, where there is room for them
        # A fit that does better on the explained part has a negative shift: its bar ends there, and nothing is lost.
        reached = fits[["accuracy", "recursive"]].max(axis=1)
        solid, pale = {"color": COLOURS[group]}, {"color": tint(COLOURS[group], 0.25)}
        ax.bar(places, reached, width, gid=f"accuracy:{group}", **solid)
        ax.bar(places, fits["shift"].clip(lower=0), width, fits["recursive"], gid=f"shift:{group}", **pale)
        known, legacy = reference.get(group, {}), "legacy_recursive"
        if legacy in fits and fits[legacy].notna().all():
            ax.plot(places, fits[legacy], gid=f"legacy:{group}", clip_on=False, **dash)
            handles.append(Line2D([], [], label="ensemble by the released OR rule", **dash))
        if value := known.get("recursive") or known.get(legacy):
            ax.plot(x, value[0], gid=f"released:{group}", zorder=5, clip_on=False, **_DIAMOND)
        ax.text(x, 1.03, f"shift {fits['shift'].median():.3f}", ha="center", fontsize=9)
    ax.axhline(majority, gid="majority", zorder=3, **_MAJORITY)
    ax.set(xlim=(-0.5, len(groups) - 0.5), ylim=(0, 1), ylabel="accuracy")
    ax.set_xticks(range(len(groups)), [LABELS[group].replace(" ", "\n") for group in groups], fontsize=10)
    ax.set_title("Sufficient: does the explained part give the same prediction?", pad=22)
    ax.set_title("above the bars: median shift", pad=22, loc="right", fontsize=9, fontweight="normal", color=GREY)
    ax.tick_params(axis="x", length=0)
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@style()
def success_rates(records: Records, rejected: Mapping[str, tuple[int, ...]] = released.REJECTED) -> Picture:
    """Which seeds were accepted (their best validation accuracy reaches .98)? A cell a seed, ours above the released.

    An ensemble's attempts are its members', of which there are too many for cells: they are counted in words.
    """
    groups = _by_group(records, accepted=False)
    figure = picture(10, 1.3 + 0.55 * len(groups))
    ax = figure.subplots()
    widest = 1
    for y, (group, members) in enumerate(groups.items()):
        if getattr(Groups(), group).ensemble:
            good = sum(len(record["training"].get("members", ())) for record in members)
            tried = good + sum(len(record["training"].get("rejected", ())) for record in members)
            ax.text(-0.4, y, f"members: {_share(good, tried)}", va="center", fontsize=9)
            continue
        seeds = {int(record["fit"].rsplit("/", 1)[1]): record["training"]["accepted"] for record in members}
        rows = [("ours", y - 0.17, seeds)]
        if group in rejected:
            theirs = range(released.FITS + len(rejected[group]))
            rows.append(("released", y + 0.17, {seed: seed not in rejected[group] for seed in theirs}))
        for source, height, known in rows:
            _cells(ax, known, height, COLOURS[group] if source == "ours" else GREY, f"{group}:{source}")
            text = f"{source}: {_share(sum(known.values()), len(known))}"
            place = {"xycoords": ("axes fraction", "data"), "xytext": (6, 0), "textcoords": "offset points"}
            ax.annotate(text, (1, height), va="center", fontsize=8.5, **place)
            widest = max(widest, *known)
    ax.set(xlim=(-0.7, widest + 0.7), xlabel="seed")
    ax.set_title("Accepted seeds (filled) and rejected ones (crossed)")
    _name_rows(ax, [LABELS[group] for group in groups])
    return figure


def _cells(ax: Axes, accepted: Mapping[int, bool], y: float, colour: str, name: str) -> None:
    for good, marker in ((True, {"marker": "s"}), (False, {"marker": "x", "markeredgewidth": 1.8})):
        seeds = [seed for seed, is_accepted in accepted.items() if is_accepted == good]
        gid = f"{'accepted' if good else 'rejected'}:{name}"
        ax.plot(seeds, [y] * len(seeds), linestyle="none", markersize=7, color=colour, gid=gid, **marker)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / max(whole, 1):.0%})"


@style()
def training_curves(records: Records, wanted: float = 0.98) -> Picture | Note:
    """How training went: the loss, and the best validation accuracy so far beside what the paper ``wanted``.

    A line for each fit whose record holds its history, dashed if it was rejected. An ensemble's record is of many fits.
    """
    groups = _by_group((record for record in records if "history" in record["training"]), accepted=False)
    if not groups:
        return Note("No training curves: none of these records holds its history. Fits that are trained anew keep it.")
    figure = picture(10, 3.9)
    left, right = figure.subplots(1, 2)
    for group, members in groups.items():
        for record in members:
            history, good = record["training"]["history"], record["training"]["accepted"]
            epoch, step, score = (np.array(history[name], float) for name in ("epoch", "step", "score"))
            time, best = epoch - 1 + step / step.max(), np.fmax.accumulate(score)
            look = {"color": COLOURS[group], "linestyle": "-" if good else "--", "linewidth": 1, "alpha": 0.7}
            left.plot(time, history["loss"], gid=f"loss:{record['fit']}", **look)
            right.plot(time, best, gid=f"score:{record['fit']}", drawstyle="steps-post", **look)
    right.axhline(wanted, gid="wanted", **_MAJORITY)
    left.set(yscale="log", xlabel="epoch", title="Loss (mean since the point before)")
    right.set(ylim=(None, 1.005), xlabel="epoch", title="Best validation accuracy so far")
    handles = [Line2D([], [], color=COLOURS[group], label=LABELS[group]) for group in groups]
    handles += [Line2D([], [], color=GREY, linestyle="--", linewidth=1, label="a rejected fit"),
                Line2D([], [], label=f"the paper's least to be accepted: {wanted:g}", **_MAJORITY)]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


@style()
def baselines(methods: pd.DataFrame, table: pd.DataFrame | None = None, majority: float = MAJORITY) -> Picture | Note:
    """Post-hoc methods on the CNN (the table of `baselines.collect`), best validated score first; points are its fits.

    Circles, dashes and bars are medians. ``table``, of the study's own fits, adds the PiNets' medians for comparison.
    """
    if methods.empty:
        return Note("No post-hoc methods to compare: they need an accepted CNN with its weights, and GROUPS has none.")
    order = methods.groupby("method").validated_score.median().sort_values(ascending=False).index
    rows = {METHODS.get(name, name.replace("_", " ")): (name, methods[methods.method == name], GREY) for name in order}
    pinets = {} if table is None else {group: fits for group, fits in _accepted(table).items() if group != "cnn"}
    rows |= {LABELS[group]: (group, fits, COLOURS[group]) for group, fits in pinets.items()}
    kinds = {"naive": ("o", 7, 1.5, "naive"), "validated": ("o", 7, 1.5, "threshold from validation masks"),
             "optimal": ("|", 12, 2.5, "optimal threshold")}  # fmt: skip

    def marker(kind: str, colour: str) -> dict[str, Any]:
        shape, size, edge, _ = kinds[kind]
        face = "white" if kind == "naive" else colour
        return {"marker": shape, "markersize": size, "markeredgewidth": edge, "color": colour, "markerfacecolor": face}

    figure = picture(10, 1.4 + 0.36 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for y, (name, fits, colour) in enumerate(rows.values()):
        medians = [fits[f"{kind}_score"].median() for kind in kinds]
        left.plot([min(medians), max(medians)], [y, y], color=tint(colour, 0.4), linewidth=3, zorder=1)
        right.barh(y, fits["recursive"].median(), 0.6, color=tint(colour, 0.6), gid=f"recursive:{name}")
        for kind, median in zip(kinds, medians, strict=True):
            left.plot(median, y, gid=f"median:{name}:{kind}", linestyle="none", **marker(kind, colour))
        if name not in pinets:
            for ax, column in ((left, "naive_score"), (left, "validated_score"), (right, "recursive")):
                ax.plot(fits[column], y + 0.2 * offsets(len(fits)), gid=f"fits:{name}:{column}", **_POINT)
    for ax, title in ((left, "Meaningful"), (right, "Sufficient")):
        if pinets:
            ax.axhline(len(order) - 0.5, color=GREY, linewidth=0.8)
        ax.set(xlim=(0, 1), title=title)
        _name_rows(ax, rows)
    left.set_xlabel("detection score = TDR × TAR")
    right.set_xlabel("accuracy on the explained part alone")
    right.axvline(majority, gid="majority", **_MAJORITY)
    handles = [Line2D([], [], linestyle="none", label=look[-1], **marker(kind, GREY)) for kind, look in kinds.items()]
    handles += [Line2D([], [], label="one CNN", **_POINT)]
    handles += [Line2D([], [], label=f"always the majority: {majority:.3f}", **_MAJORITY)]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def _accepted(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The accepted fits of each group that has any, in the paper's order."""
    fits = table[table.accepted.astype(bool)]
    return {group: fits[fits.group == group] for group in GROUPS if (fits.group == group).any()}


def _by_group(records: Records, accepted: bool = True) -> dict[str, list[Mapping[str, Any]]]:
    records = [record for record in records if record["training"]["accepted"] or not accepted]
    found = {group: [record for record in records if record["group"] == group] for group in GROUPS}
    return {group: members for group, members in found.items() if members}


def _rows(middle: float, n: int) -> tuple[np.ndarray, float]:
    """Places [n] and width of the bars of a group's ``n`` fits: they share .84 of its row, but few do not grow fat."""
    width = 0.84 / max(n, MIN_FITS)
    return middle + width * (np.arange(n) - (n - 1) / 2), width


def _name_rows(ax: Axes, labels: Iterable[str]) -> None:
    """One row a label, the first on top."""
    labels = list(labels)
    ax.set_yticks(range(len(labels)), labels, fontsize=10)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
