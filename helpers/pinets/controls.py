"""The controls of the ToyShapes explorer: built once, bound to its methods, and made to follow its state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets as w
import numpy as np

from helpers import metrics, widgets
from helpers.metrics import THRESHOLDS

if TYPE_CHECKING:
    from helpers.pinets.explore import Explorer

PANELS = ("image", "mask", "map", "explained", "contributions")
GLYPHS = {"triangle": "▲△", "square": "■□", "circle": "●○", "void": "∅∅"}  # solid, hollow
LEVEL = 0.75  # the satisfaction level whose range of thresholds is shown
LABELLED = {"description_width": "84px"}


class Controls:
    """``widget`` is all of it; ``panels`` the pictures by name."""

    def __init__(self, explorer: Explorer):
        self.panels = {name: widgets.Panel(name) for name in PANELS}
        self.values = w.HTML(layout={"flex": "1 1 420px", "min_width": "0"})
        pictures = w.GridBox([panel.widget for panel in self.panels.values()])
        pictures.layout = {"grid_template_columns": f"repeat({len(PANELS)}, minmax(0, 1fr))", "grid_gap": "0 12px"}
        below = w.HBox([self._drawing_controls(explorer), self.values])
        below.layout = {"flex_flow": "row wrap", "grid_gap": "12px 28px"}
        rows = [w.HTML(widgets.STYLE), *self._choices(explorer), explorer.message, pictures, below]
        self.widget = w.VBox(rows, layout={"max_width": "1160px", "padding": "4px", "grid_gap": "4px"})
        self.widget.add_class("sightline")

    def show(self, explorer: Explorer) -> None:
        """Follow the explorer's state."""
        self._show_choices(explorer)
        self._show_drawing(explorer)
        self.values.value = values(explorer)

    # ---------------------------------------------------------------------------------------------- choices

    def _choices(self, explorer: Explorer) -> list[w.Widget]:
        bind, click, select = explorer.bind, explorer.bind_click, explorer.select
        fits = explorer.fits
        groups = [(fits.label(group), group) for group in fits.names]
        self.group = bind(widgets.dropdown("Group", groups, "212px"), lambda group: select(group=group))
        self.group.add_class("sightline-group")
        self.fit = bind(widgets.dropdown("Fit", [], "150px"), lambda fit: select(fit=fit))
        kinds = [("all images", "all"), ("with a target", "positive"), ("without", "negative")]
        self.images = bind(widgets.dropdown("Images", kinds, "190px"), lambda images: select(images=images))
        last = len(explorer.board.counts) - 1
        self.image = w.BoundedIntText(min=0, max=last, layout={"width": "80px"})
        bind(self.image, lambda image: select(image=image))
        before = click(widgets.button("◀", "the image before", "36px"), lambda: explorer.step(-1))
        after = click(widgets.button("▶", "the next image", "36px"), lambda: explorer.step(1))

        self.mode = w.ToggleButtons(options=[("naive map", "naive"), ("thresholded", "thresholded")])
        self.mode.style = {"button_width": "96px"}
        bind(self.mode, lambda mode: select(mode=mode))
        step = float(np.log10(THRESHOLDS[1] / THRESHOLDS[0]))  # the grid on which the records were computed
        self.threshold = w.FloatLogSlider(
            min=-4, max=0, step=step, description="Threshold", readout_format=".1e", continuous_update=False
        )
        self.threshold.layout, self.threshold.style = {"width": "330px"}, {"description_width": "initial"}
        self.threshold.add_class("sightline-threshold")
        bind(self.threshold, lambda value: select(threshold=min(max(value, THRESHOLDS[0]), THRESHOLDS[-1])))
        self.rules = {
            "validation": widgets.button("validation", "tuned on validation images: no test mask was seen", "126px"),
            "oracle": widgets.button("oracle", "the best on the test set, chosen with its masks", "126px"),
        }
        for rule, button in self.rules.items():
            click(button, lambda rule=rule: select(threshold=rule))
        self.recursive = w.Checkbox(description="recursive look", indent=False, layout={"width": "140px"})
        self.recursive.tooltip = "feed the network the explained part of the image in its place"
        bind(self.recursive, lambda recursive: select(recursive=recursive))
        row = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "0 10px"}
        return [
            w.HBox([self.group, self.fit, self.images, before, self.image, after], layout=row),
            w.HBox([self.mode, self.threshold, *self.rules.values(), self.recursive], layout=row),
        ]

    def _show_choices(self, explorer: Explorer) -> None:
        state, fits = explorer.state, explorer.fits
        self.group.value, self.images.value, self.image.value = state.group, state.images, state.image
        kind = "ensemble" if getattr(explorer.study.group, state.group).ensemble else "seed"
        names = fits.names[state.group]
        widgets.set_options(self.fit, [(f"{kind} {name.split('/')[1]}", name) for name in names], state.fit)
        self.mode.value, self.threshold.value, self.recursive.value = state.mode, state.threshold, state.recursive
        for rule, button in self.rules.items():
            button.description = f"{rule} {_short(fits.open(state.fit).threshold(rule))}"
            button.button_style = "info" if rule == state.rule and state.mode == "thresholded" else ""

    # ---------------------------------------------------------------------------------------------- drawing

    def _drawing_controls(self, explorer: Explorer) -> w.Widget:
        """The grid of cells, and what the chosen one shows."""
        bind, click, data = explorer.bind, explorer.bind_click, explorer.study.data
        self.cells = [widgets.button("", f"cell {index}", "40px") for index in range(data.n_blocks)]
        for index, button in enumerate(self.cells):
            button.layout.height, button.layout.margin = "40px", "0"
            click(button, lambda index=index: self._choose(explorer, index))
        rows = [self.cells[row * data.grid : (row + 1) * data.grid] for row in reversed(range(data.grid))]
        grid = w.GridBox([button for row in rows for button in row])
        grid.layout = {"grid_template_columns": f"repeat({data.grid}, 40px)", "grid_gap": "1px", "width": "max-content"}

        def edit(name: str):
            return lambda value: explorer.place(explorer.state.cell, **{name: value})

        self.shape = w.ToggleButtons(options=[(GLYPHS[shape][0], shape) for shape in data.shapes])
        self.shape.tooltips = data.shapes
        self.shape.style = {"button_width": "46px"}
        self.side = _slider("Side", data.block_size // 4, data.block_size)
        self.shade, self.background = _slider("Shade", 0, 255), _slider("Background", 0, 255)
        self.hollow = w.Checkbox(description="hollow", indent=False, layout={"width": "80px"})
        for name in ("shape", "side", "shade", "hollow"):
            bind(getattr(self, name), edit(name))
        bind(self.background, explorer.fill)
        self.moving = w.ToggleButton(description="move to …", tooltip="then choose the cell to exchange it with")
        self.moving.layout = {"width": "96px"}
        self.undo = click(
            widgets.button("test image", "back from the drawing to the test image", "96px"), explorer.reset
        )
        self.hint = w.HTML()
        editor = w.VBox(
            [self.shape, self.side, self.shade, self.background, w.HBox([self.hollow, self.moving, self.undo])],
            layout={"width": "300px"},
        )
        head = w.HTML("<b>Draw your own</b> <small>choose a cell, change what it shows</small>")
        return w.VBox([head, w.HBox([grid, editor], layout={"grid_gap": "14px"}), self.hint], layout={"width": "490px"})

    def _choose(self, explorer: Explorer, index: int) -> None:
        """A click on a cell: choose it, or move the chosen one's shape there."""
        if self.moving.value:
            self.moving.value = False
            explorer.move(explorer.state.cell, index)
        else:
            explorer.select(cell=index)

    def _show_drawing(self, explorer: Explorer) -> None:
        drawing, chosen = explorer.drawing, explorer.state.cell
        for index, (button, cell) in enumerate(zip(self.cells, drawing.cells, strict=True)):
            # a button whose text becomes empty keeps the old one on the page: a blank is a text
            button.description = "\N{NO-BREAK SPACE}" if cell.shape == "void" else GLYPHS[cell.shape][cell.hollow]
            button.style.button_color, button.style.text_color = _grey(drawing.background), _grey(cell.shade)
            button.style.font_size = f"{14 + cell.side // 2}px"
            button.layout.border = f"3px solid {'#3d9bff' if index == chosen else 'transparent'}"
        cell = drawing.cells[chosen]
        self.shape.value, self.side.value, self.shade.value = cell.shape, cell.side, cell.shade
        self.hollow.value, self.background.value = cell.hollow, drawing.background
        for control in (self.side, self.shade, self.hollow):
            control.disabled = cell.shape == "void"
        self.undo.disabled = explorer.state.drawing is None
        unusual = explorer.board.unusual(drawing) if explorer.state.drawing else []
        self.hint.value = f"<small>No training image has {' or '.join(unusual)}.</small>" if unusual else ""


def _slider(name: str, low: int, high: int) -> w.IntSlider:
    slider = w.IntSlider(min=low, max=high, description=name, continuous_update=False, style=LABELLED)
    slider.layout = {"width": "290px"}
    return slider


def _grey(level: int) -> str:
    return f"rgb({level}, {level}, {level})"


# -------------------------------------------------------------------------------------------------- values


def values(explorer: Explorer) -> str:
    """The MARS table: what is shown beside what is known of the fit."""
    shown, study = explorer.view, explorer.study
    fit, count = explorer.fits.open(explorer.state.fit), explorer.board.count(explorer.drawing)
    test = fit.record["test"]
    look, target = shown.look, study.data.target
    label = f"{count} {target}{'s' * (count != 1)}" if count else f"no {target}"
    right = "right" if (look.logit > 0) == (count > 0) else "<b>wrong</b>"
    found = f"TDR {shown.tdr:.2f}, TAR {shown.tar:.2f}, product <b>{shown.tdr * shown.tar:.2f}</b>"
    same = "the same" if (shown.again > 0) == (look.logit > 0) else "<b>another one</b>"
    rows = [
        ("Prediction", f"{_said(look.logit)}; {label}: {right}", f"accuracy {test['accuracy']:.3f}"),
        ("Meaningful", found if count else f"TAR {shown.tar:.2f} (TDR needs a {target})", _detection(explorer)),
        ("Aligned", _identity(explorer), f"unexplained variance {_short(test['alignment_residual'], 0)}"),
        ("Robust", _votes(explorer) or "a matter of many fits", _range(explorer)),
        (
            "Sufficient",
            f"explained part alone: {_said(shown.again)}, {same}",
            f"recursive accuracy {test['recursive']['accuracy']:.3f}",
        ),
    ]
    rejected = "" if fit.record["training"]["accepted"] else ", a rejected fit"
    head = f"{fit.label}, {fit.name}{rejected}: {study.test_images:,} test images"
    return widgets.table(["", "this image", head], rows)


def _said(logit: float) -> str:
    return f"<b>{'positive' if logit > 0 else 'negative'}</b> (logit {_number(logit)})"


def _short(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}e}".replace("e-0", "e-").replace("e+00", "")


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _identity(explorer: Explorer) -> str:
    """The prediction computed from the map, written out: ``b² · Σ + a = logit``."""
    fit, look = explorer.fits.open(explorer.state.fit), explorer.view.look
    if fit.read_out is None:
        return "no: the map is made after the prediction"
    weight, bias = fit.read_out
    total = float(look.contributions.sum(dtype=float))
    sign = "−" if bias < 0 else "+"
    if look.votes:
        formula, written = f"Σ {fit.evidence} + mean(a)", f"{_number(total)} {sign} {abs(bias):.2f}"
    else:
        formula = f"b² · Σ {fit.evidence} + a"
        written = f"{weight:.3f} · {_number(total / weight if weight else 0.0)} {sign} {abs(bias):.2f}"
    return f"{formula} = {written} = <b>{_number(total + bias)}</b>"


def _votes(explorer: Explorer) -> str:
    votes = explorer.view.look.votes
    if not votes:
        return ""
    positive = sum(vote > 0 for vote in votes)
    return f"{len(votes)} members: logits {_number(min(votes))} to {_number(max(votes))}, {positive} positive"


def _detection(explorer: Explorer) -> str:
    """The record's scores: naive, at the oracle's threshold, and at the one that is set."""
    fit, state = explorer.fits.open(explorer.state.fit), explorer.state
    test = fit.record["test"]
    text = f"score {test['naive']['score']:.3f} naive, {test['optimal']['score']:.3f} oracle"
    if state.mode == "thresholded":
        nearest = int(np.abs(np.log(THRESHOLDS / state.threshold)).argmin())
        text += f", <b>{fit.curve[nearest]:.3f}</b> here"
    return text


def _range(explorer: Explorer) -> str:
    curve = explorer.fits.open(explorer.state.fit).curve
    ends = metrics.detection_range(curve, LEVEL)
    if ends is None:
        return f"no threshold scores above {LEVEL}"
    decades = metrics.range_length(curve, LEVEL)
    return f"score above {LEVEL} from {_short(ends[0])} to {_short(ends[1])}, {decades:.1f} decades"
