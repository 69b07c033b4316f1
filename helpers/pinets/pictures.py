"""The figures about single images of the ToyShapes study: samples, maps side by side, the identity, the key figure.

Maps come computed (`examples.maps`), so that nothing here needs a model. Images and masks are [n, H, W] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import ArrayLike

from helpers.figures import BLACK, BLUE, GREY, HEAT, RED, Note, Picture, image_grid, overlay, picture, show, style, tint
from helpers.pinets.figures import MAJORITY


class Maps(Protocol):
    """One model's maps of some images, as `examples.Example` holds them: ``heat`` [n, H, W] in [0, 1]."""

    label: str
    heat: np.ndarray
    threshold: float
    naive_score: float
    optimal_score: float
    recursive_accuracy: float
    record: Mapping[str, Any]


def samples(
    images: ArrayLike, masks: ArrayLike, counts: Sequence[int] | None = None, target: str = "triangle"
) -> Picture:
    """Images [n, H, W], the shapes of the kind ``target`` outlined, and their ``counts`` as titles."""
    counts = None if counts is None else [f"{n} {target}{'' if n == 1 else 's'}" for n in counts]
    return image_grid(images, masks, counts, columns=5)


@style()
def examples(
    images: ArrayLike, masks: ArrayLike, maps: Mapping[str, Maps], target: str = "triangle"
) -> Picture | Note:
    """A row an image: image, mask, then of each model its map as it is and what of it is above its threshold.

    Titles give the models' scores x 100 on the whole test set, naive and optimal.
    """
    if not maps:
        return Note("No examples: none of the groups that they are of is among GROUPS with an accepted fit.")
    images, masks = np.asarray(images), np.asarray(masks)
    if not len(images):
        return Note("No examples: too few of the test images show the target. Raise test_images.")
    rows, columns = len(images), 2 + 2 * len(maps)
    size = min(1.6, 12 / columns)
    figure = picture(0.5 + columns * size, 0.55 + rows * size)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
        show(axes[row, 0], image, title="" if row else "image")
        show(axes[row, 1], mask > 0, title="" if row else f"{target}s")
        for column, model in zip(range(2, columns, 2), maps.values(), strict=True):
            heat = np.asarray(model.heat)[row]
            naive, optimal = f"as is {100 * model.naive_score:.1f}", f"threshold {100 * model.optimal_score:.1f}"
            show(axes[row, column], heat, title="" if row else naive, colours=HEAT)
            show(axes[row, column + 1], heat > model.threshold, title="" if row else optimal)
            if row == 0:
                axes[0, column].set_title(f"{model.label}\n", fontsize=10, pad=3)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), ax=axes, fraction=0.012, pad=0.01, aspect=30)
    bar.set_ticks([0, 1], labels=["0", "max"])
    bar.outline.set_visible(False)
    return figure


@style()
def alignment(
    image: ArrayLike,
    scores: ArrayLike,
    scale: float,
    bias: float,
    logit: float,
    second_look: Literal["hard", "soft"] = "hard",
    mask: ArrayLike | None = None,
    peak: float = 1.0,
    target: str = "triangle",
) -> Picture:
    """The paper's idea on one image [H, W]: times the scores [H, W] it is the signal, whose sum gives the logit.

    ``scale`` is the paper's b squared (1 of an ensemble), ``bias`` its a; the sum is taken here, from what is drawn,
    and stands beside the ``logit`` that the network gave. A soft second look sums the scores instead. ``peak`` is the
    score that is drawn brightest: the model's maximum over the test set, so that a map of nearly nothing stays dark.
    """
    image, scores = np.asarray(image, float), np.asarray(scores, float)
    signal, hard = image * scores, second_look == "hard"
    steps = [(image, "image $z = x$", "gray"), (scores / peak, "scores $\\pi$", HEAT)]
    steps += [(signal / peak, "signal $\\pi \\odot z$", "gray")] if hard else []
    figure = picture(11 if hard else 8.3, 2.7)
    axes = figure.subplots(1, 2 * len(steps) + 1, width_ratios=[4, 0.7] * len(steps) + [6.5])
    for left, right, symbol, (values, title, colours) in zip(
        axes[:-1:2], axes[1::2], "⊙=→" if hard else "→→", steps, strict=True
    ):
        show(left, values, mask if values is image else None, title, colours)
        right.text(0.5, 0.5, symbol, ha="center", va="center", fontsize=22, color=GREY)
        right.set_axis_off()
    evidence = float((signal if hard else scores).sum())
    _sum(axes[-1], scale, evidence, bias, "π ⊙ z" if hard else "π", logit, target)
    return figure


def _sum(ax: Axes, scale: float, evidence: float, bias: float, summed: str, logit: float, target: str) -> None:
    """The bars of ``scale * evidence`` and ``bias``, and where they end."""
    total = scale * evidence + bias
    rows = [(2, 0.0, scale * evidence, BLUE, f"b² · Σ {summed} = {scale:.2f} × {evidence:.1f}", "evidence"),
            (1, scale * evidence, bias, RED, f"a = {_signed(bias)}", "bias"),
            (0, 0.0, total, BLACK, f"logit = {_signed(total)}", "logit")]  # fmt: skip
    for y, start, length, colour, text, name in rows:
        ax.barh(y, length, 0.32, start, color=colour, gid=name)
        ax.plot([start + length] * 2, [y - 0.84, y + 0.16], color=colour, linewidth=0.8, linestyle=":")
        ax.annotate(text, (0, y), (4, 10), textcoords="offset points", va="bottom", fontsize=10)
    ax.axvline(0, color=GREY, linewidth=1)
    ends = [0.0, scale * evidence, total]
    low, high = min(ends), max(ends)
    span = max(high - low, 1e-9)
    ax.set(xlim=(low - 0.06 * span, high + 0.35 * span), ylim=(-0.6, 2.7), yticks=[])
    ax.spines["left"].set_visible(False)
    verdict = target if logit > 0 else f"no {target}"
    ax.set_xlabel(f"the network says {_signed(logit)}: {verdict}", loc="left")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


_QUESTIONS = ("accuracy from the\nmarked part alone", "detection score:\nmarks the {}s?", "accuracy")


@style()
def key(
    image: ArrayLike,
    mask: ArrayLike,
    maps: Mapping[str, Maps],
    index: int = 0,
    title: str = "Equally accurate, not equally explained",
    majority: float = MAJORITY,
    target: str = "triangle",
) -> Picture:
    """The study at a glance: one image [H, W], each model's map of it (``heat[index]``), and what its maps are worth.

    Beneath each map three bars, over the whole test set: accuracy, detection score (solid as the map is, pale at the
    best threshold), and accuracy on the marked part alone, with a tick at the ``majority`` rate.
    """
    columns = 1 + len(maps)
    figure = picture(1.62 * columns, 3.45)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.02, wspace=0.02)
    axes = figure.subplots(2, columns, height_ratios=(5, 4), squeeze=False)
    show(axes[0, 0], image, mask, f"{target}s outlined")
    axes[1, 0].set(xlim=(0, 1), ylim=(0, 2.85))
    axes[1, 0].set_axis_off()
    for y, text in enumerate(_QUESTIONS):
        axes[1, 0].text(1, y + 0.38, text.format(target), ha="right", va="center", fontsize=9)
    for ax, below, model in zip(axes[0, 1:], axes[1, 1:], maps.values(), strict=True):
        show(ax, overlay(image, np.asarray(model.heat)[index]), title=model.label)
        _bars(below, model, majority)
    figure.suptitle(title, x=0.005, ha="left")
    return figure


def _bars(ax: Axes, model: Maps, majority: float) -> None:
    ax.set(xlim=(0, 1), ylim=(0, 2.85))
    ax.set_axis_off()
    rows = [{"recursive": model.recursive_accuracy}, {"naive": model.naive_score, "optimal": model.optimal_score},
            {"accuracy": model.record["test"]["accuracy"]}]  # fmt: skip
    for y, values in enumerate(rows):
        ax.barh(y + 0.25, 1, 0.26, color="#eeeeee")
        for name, value in reversed(values.items()):  # the solid bar over the pale one
            ax.barh(y + 0.25, value, 0.26, color=tint(BLUE, 0.4) if name == "optimal" else BLUE, gid=name)
        ax.text(0, y + 0.43, " → ".join(f"{value:.2f}" for value in values.values()), va="bottom", fontsize=10)
    ax.plot([majority] * 2, [0.06, 0.44], color=BLACK, linewidth=1.5, gid="majority")
