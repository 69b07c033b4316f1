"""Figures draw the numbers that they are given, nothing else, and leave nothing behind."""

import warnings
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot
from matplotlib.colors import to_rgb

from helpers import figures as shared
from helpers.metrics import THRESHOLDS, detection_range
from helpers.pinets import figures, pictures, released, study
from helpers.pinets.evaluate import LEVELS
from helpers.pinets.presets import GROUPS

LEGACY = {"majority": 0.9, "legacy": 0.97}


def record(group, seed, rng, accepted=True):
    """What is known of a fit that was never trained."""
    rise, fall = rng.uniform(-4, -2), rng.uniform(-1, 0)
    grid = np.log10(THRESHOLDS)
    tdr, tar = rng.uniform(0.8, 1) / (1 + np.exp(9 * (grid - fall))), 0.97 / (1 + np.exp(-9 * (grid - rise)))
    best = int((tdr * tar).argmax())
    optimal = {"threshold": THRESHOLDS[best], "tdr": tdr[best], "tar": tar[best], "score": tdr[best] * tar[best]}
    recursive = {"accuracy": rng.uniform(0.3, 1)} | (LEGACY if group == "ensemble" else {})
    training = {"accepted": accepted} | ({"members": [0, 1, 3], "rejected": [2]} if group == "ensemble" else {})
    test = {"accuracy": 0.99, "naive": {"score": rng.uniform(0.1, 0.9)}, "optimal": optimal, "recursive": recursive,
            "validated": optimal, "curve": {"tdr": list(tdr), "tar": list(tar)}, "alignment_residual": 0.0}  # fmt: skip
    test["shift"] = test["accuracy"] - recursive["accuracy"]
    made = {"settings": "of no study"}
    return {"group": group, "fit": f"{group}/{seed}", "training": training, "test": test, "computed_from": made}


def records_of(groups=GROUPS, fits=6, rejected=1):
    rng = np.random.default_rng(0)
    return [record(g, s, rng, s >= rejected or g == "ensemble") for g in groups for s in range(fits + rejected)]


def with_history(records, score=(0.5, None, 0.9, 1.0)):
    """The records of fits that were validated twice in each of two epochs."""
    history = {"epoch": [1, 1, 2, 2], "step": [10, 25, 10, 25], "loss": [300.0, 2.5, 0.1, 0.02], "score": list(score)}
    return [record | {"training": record["training"] | {"history": history}} for record in records]


def methods_of(fits=3):
    rng = np.random.default_rng(1)
    names = ("grad_cam", "gradient", "lime")
    columns = ("naive_score", "validated_score", "optimal_score", "recursive")
    rows = [{"method": name, "fit": f"cnn/{seed}"} for name in names for seed in range(fits)]
    return pd.DataFrame([row | {column: rng.uniform() for column in columns} for row in rows])


@pytest.fixture(scope="module")
def records():
    return records_of()


@pytest.fixture(scope="module")
def table(records):
    return study.frame(records)


def accepted(table, group):
    return table[(table.group == group) & table.accepted]


def found(figure, name):
    """The artists called ``name``, in the order of drawing."""
    return figure.findobj(lambda artist: artist.get_gid() == name)


def one(figure, name):
    (artist,) = found(figure, name)
    return artist


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def points(artist):
    return np.asarray(artist.get_xdata(), float), np.asarray(artist.get_ydata(), float)


# ---------------------------------------------------------------------------------------------------- shared parts


def test_a_figure_leaves_no_trace_in_matplotlib(table):
    before = dict(matplotlib.rcParams)
    figures.meaningfulness(table)._repr_png_()
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_a_notebook_shows_a_figure_without_any_backend():
    formats, _ = DisplayFormatter().format(shared.picture(1, 1))
    assert formats["image/png"].startswith(b"\x89PNG")


def test_a_figure_keeps_its_style_in_a_notebook_that_has_another():
    def drawn():
        return pictures.alignment(np.eye(8), np.eye(8), scale=1.0, bias=-1.0, logit=7.0)

    usual = shared.png(drawn())
    with matplotlib.rc_context({"xtick.labelsize": 20, "mathtext.fontset": "cm", "font.family": "serif"}):
        assert shared.png(drawn()) == usual


def test_equal_figures_are_equal_bytes(table, tmp_path):
    first, second = (shared.save(figures.recursive_accuracy(table), tmp_path / f"{i}.png") for i in "12")
    assert first.read_bytes() == second.read_bytes()
    assert not [path for path in tmp_path.iterdir() if path not in (first, second)]


def test_a_figure_has_a_hundred_pixels_an_inch(tmp_path):
    image = matplotlib.image.imread(shared.save(shared.picture(3, 2), tmp_path / "a.png"))
    assert image.shape[:2] == (200, 300)


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match="png"):
        shared.save(shared.picture(1, 1), tmp_path / "a.pdf")


# What dichromats see of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
VISION = {
    "usual": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(linear):
    """CIE L*a*b* (white point D65) of linear RGB [N, 3]."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (linear @ to_xyz.T / to_xyz.sum(1)).T
    x, y, z = (np.where(v > 0.008856, np.cbrt(v), 7.787 * v + 16 / 116) for v in (x, y, z))
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


@pytest.mark.parametrize("vision", VISION)
def test_colours_are_told_apart_with_any_colour_vision(vision):
    rgb = np.array([to_rgb(colour) for colour in shared.COLOURS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = lab((linear @ np.array(VISION[vision]).T).clip(0, 1))
    distance = np.linalg.norm(seen[:, None] - seen, axis=-1)
    assert distance[~np.eye(len(seen), dtype=bool)].min() > 7  # 2.3 is a just noticeable difference


def test_tint_reaches_from_white_to_the_colour():
    assert shared.tint("#0072B2", 0) == (1, 1, 1)
    assert shared.tint("#0072B2", 1) == pytest.approx(to_rgb("#0072B2"))


def test_where_there_is_no_heat_the_overlay_is_the_image_at_half_its_brightness():
    image = np.random.default_rng(0).uniform(size=(2, 5, 4))
    np.testing.assert_allclose(shared.overlay(image, np.zeros_like(image)), 0.5 * np.repeat(image[..., None], 3, -1))


def test_full_heat_hides_the_image_at_full_opacity():
    hot = matplotlib.colormaps[shared.HEAT](1.0)[:3]
    result = shared.overlay(np.random.default_rng(0).uniform(size=(5, 4, 3)), np.full((5, 4), 7.0), opacity=1)
    np.testing.assert_allclose(result, np.broadcast_to(hot, (5, 4, 3)))


def test_the_overlay_refuses_a_heat_map_of_another_shape():
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        shared.overlay(np.zeros((5, 5)), np.zeros((4, 4)))


@pytest.mark.parametrize(("rows", "columns"), [(slice(2, 5), slice(1, 3)), (slice(0, 8), slice(0, 8)), (3, 3)])
def test_an_outline_is_as_long_as_the_perimeter(rows, columns):
    mask = np.zeros((8, 8))
    mask[rows, columns] = 1
    height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
    segments = np.array(shared.outline(shared.picture(1, 1).subplots(), mask).get_segments())
    assert len(segments) == 2 * (height + width)
    assert (np.abs(segments[:, 1] - segments[:, 0]).sum(1) == 1).all()


def test_an_outline_includes_holes():
    mask = np.ones((5, 5))
    mask[2, 2] = 0
    assert len(shared.outline(shared.picture(1, 1).subplots(), mask).get_segments()) == 20 + 4


def test_an_image_grid_shows_every_image_in_order():
    images = np.random.default_rng(0).uniform(size=(7, 6, 6))
    figure = shared.image_grid(images, titles=[f"no. {i}" for i in range(7)], columns=3)
    shown = [ax for ax in figure.axes if ax.images]
    assert len(figure.axes) == 9 and [ax.get_title() for ax in shown] == [f"no. {i}" for i in range(7)]
    np.testing.assert_array_equal([ax.images[0].get_array() for ax in shown], images)


def test_offsets_spread_points_without_collisions():
    for n in (1, 5, 30):
        places = shared.offsets(n)
        assert np.abs(places).max() < 1 and len(np.unique(places.round(6))) == n


# ------------------------------------------------------------------------------------------------- figures of fits

FIGURES = {
    "meaningfulness": lambda records: figures.meaningfulness(study.frame(records)),
    "meaningfulness, ours alone": lambda records: figures.meaningfulness(study.frame(records), reference={}),
    "detection_plane": lambda records: figures.detection_plane(study.frame(records)),
    "ease_of_tuning": lambda records: figures.ease_of_tuning(records),
    "ease_of_tuning, ours alone": lambda records: figures.ease_of_tuning(records, reference={}),
    "recursive_accuracy": lambda records: figures.recursive_accuracy(study.frame(records)),
    "recursive_accuracy, ours alone": lambda records: figures.recursive_accuracy(study.frame(records), reference={}),
    "success_rates": lambda records: figures.success_rates(records),
    "success_rates, ours alone": lambda records: figures.success_rates(records, rejected={}),
    "training_curves": lambda records: figures.training_curves(with_history(records)),
    "baselines": lambda records: figures.baselines(methods_of()),
    "baselines, with PiNets": lambda records: figures.baselines(methods_of(1), study.frame(records)),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize(
    "some", [{"fits": 1, "rejected": 0}, {"fits": 2, "groups": ("naive", "pinet")}, {"groups": ("ensemble",)}], ids=str
)
def test_few_fits_and_groups_are_drawn_without_a_warning(name, some):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FIGURES[name](records_of(**some)).draw_without_rendering()


@pytest.mark.parametrize("name", FIGURES)
def test_text_stays_inside_the_figure(name, records):
    figure = FIGURES[name](records)
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= width + 0.01 and box.y1 <= height + 0.01


def test_without_released_values_none_are_shown(records, table):
    for figure in (figures.meaningfulness(table, {}), figures.recursive_accuracy(table, reference={})):
        assert not figure.findobj(lambda artist: str(artist.get_gid()).startswith("released"))
        assert not any("released: median" in text.get_text() for text in figure.legends[0].get_texts())
    assert not any("released" in text for text in texts(figures.success_rates(records, {})))


def test_meaningfulness_marks_medians_and_every_accepted_fit(table):
    figure = figures.meaningfulness(table)
    for group in GROUPS:
        for kind in ("naive", "optimal"):
            values = accepted(table, group)[f"{kind}_score"]
            assert points(one(figure, f"median:{group}:{kind}"))[0] == pytest.approx([values.median()] * 2)
            np.testing.assert_array_equal(points(one(figure, f"fits:{group}:{kind}"))[0], values)
            reference = points(one(figure, f"released:{group}:{kind}"))[0]
            assert reference == pytest.approx([released.TABLE[group][f"{kind}_score"][0]])


def test_meaningfulness_has_two_violins_a_group_of_enough_fits():
    for fits, violins in ((4, 0), (figures.MIN_FITS, 2)):
        figure = figures.meaningfulness(study.frame(records_of(("cnn", "pinet"), fits)))
        assert len(figure.findobj(lambda artist: str(artist.get_gid()).startswith("violin:pinet"))) == violins


def test_meaningfulness_draws_lines_at_the_medians_of_grad_cam(table):
    figure = figures.meaningfulness(table)
    for kind in ("naive", "optimal"):
        assert points(one(figure, f"line:{kind}"))[0][0] == accepted(table, "cnn")[f"{kind}_score"].median()
    assert not found(figures.meaningfulness(table[table.group != "cnn"]), "line:naive")


def test_an_ellipse_is_its_groups_covariance(table):
    figure = figures.detection_plane(table)
    for group in GROUPS:
        fits = accepted(table, group)
        xy = fits[["optimal_tdr", "optimal_tar"]].to_numpy()
        for ellipse in found(figure, f"ellipse:{group}"):
            assert ellipse.center == pytest.approx(xy.mean(0))
            turn = np.radians(ellipse.angle)
            axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            widths = np.array([ellipse.width, ellipse.height]) / 2.45
            np.testing.assert_allclose(axes * widths**2 @ axes.T, np.cov(xy.T), atol=1e-12)
        assert len(found(figure, f"ellipse:{group}")) == 3  # the plane and its two enlargements


def test_few_fits_have_no_ellipse():
    for fits, ellipses in ((figures.MIN_FITS - 1, 0), (figures.MIN_FITS, 3)):
        figure = figures.detection_plane(study.frame(records_of(("pinet",), fits)))
        assert len(found(figure, "ellipse:pinet")) == ellipses


def test_iso_curves_have_their_score(table):
    figure = figures.detection_plane(table)
    for score in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        tdr, tar = points(found(figure, f"score:{score:.2f}")[0])
        np.testing.assert_allclose(tdr * tar, score)
    assert [ax.get_xlim() + ax.get_ylim() for ax in figure.axes] == [(0, 1, 0, 1), (0.8, 1, 0.8, 1), (0.96, 1, 0.9, 1)]


def test_ranges_are_those_of_the_metric_the_longest_first(records):
    figure = figures.ease_of_tuning(records)
    for group in GROUPS:
        for level in LEVELS:
            bars = found(figure, f"range:{group}:{level}")
            ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars]
            fits = [r for r in records if r["group"] == group and r["training"]["accepted"]]
            expected = [detection_range(study.scores(fit), level) for fit in fits]
            np.testing.assert_allclose(sorted(ends), sorted(e for e in expected if e))
            lengths = [np.log10(high / low) for low, high in ends]
            assert lengths == sorted(lengths, reverse=True)
            assert [bar.get_y() for bar in bars] == sorted(bar.get_y() for bar in bars)


def test_recursive_accuracy_is_the_bar_without_its_overlay(table):
    figure = figures.recursive_accuracy(table)
    for group in GROUPS:
        fits = accepted(table, group).sort_values("shift")
        bars, overlays = found(figure, f"accuracy:{group}"), found(figure, f"shift:{group}")
        assert [bar.get_height() for bar in bars] == pytest.approx(list(fits[["accuracy", "recursive"]].max(axis=1)))
        assert [bar.get_height() for bar in overlays] == pytest.approx(list(fits["shift"].clip(lower=0)))
        assert [bar.get_y() for bar in overlays] == pytest.approx(list(fits.recursive))
        assert [bar.get_x() for bar in bars] == sorted(bar.get_x() for bar in bars)
    assert points(one(figure, "majority"))[1][0] == 0.647


def test_the_or_rule_is_shown_for_ensembles_alone(table):
    figure = figures.recursive_accuracy(table)
    (shown,) = figure.findobj(lambda artist: str(artist.get_gid()).startswith("legacy"))
    assert shown.get_gid() == "legacy:ensemble"
    assert set(points(shown)[1]) == {LEGACY["legacy"]}


def test_success_rates_show_every_seed(records):
    figure = figures.success_rates(records)
    assert list(points(one(figure, "rejected:soft:ours"))[0]) == [0]
    assert list(points(one(figure, "accepted:soft:ours"))[0]) == [1, 2, 3, 4, 5, 6]
    assert tuple(points(one(figure, "rejected:soft:released"))[0]) == released.REJECTED["soft"]
    assert len(points(one(figure, "accepted:soft:released"))[0]) == released.FITS
    assert {"ours: 6 of 7 (86%)", "members: 21 of 28 (75%)"} <= set(texts(figure))


def test_training_curves_show_the_loss_and_the_best_score_so_far(records):
    figure = figures.training_curves([*with_history(records[:2]), *records[2:]])
    assert [line.get_linestyle() for line in (one(figure, "loss:cnn/0"), one(figure, "loss:cnn/1"))] == ["--", "-"]
    assert not found(figure, "loss:cnn/2"), "its record holds no history"
    time, loss = points(one(figure, "loss:cnn/1"))
    assert list(time) == [0.4, 1, 1.4, 2] and list(loss) == [300, 2.5, 0.1, 0.02]
    time, score = points(one(figure, "score:cnn/1"))
    assert list(time) == [0.4, 1, 1.4, 2] and list(score) == [0.5, 0.5, 0.9, 1]


def test_what_has_nothing_to_show_says_so_in_one_line(records, drawn):
    for note, word in (
        (figures.training_curves(records), "history"),
        (figures.baselines(pd.DataFrame()), "CNN"),
        (pictures.examples(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)), {}), "GROUPS"),
        (pictures.examples(drawn[0][:0], drawn[1][:0], drawn[2]), "Raise test_images"),
    ):
        shown = DisplayFormatter().format(note)[0]
        assert shown == {"text/plain": note.text} and word in note.text and "\n" not in note.text


def test_baselines_are_sorted_by_the_score_that_needs_no_oracle(table):
    methods = methods_of()
    figure = figures.baselines(methods, table)
    rows = {name: points(one(figure, f"median:{name}:validated")) for name in methods.method.unique()}
    medians = methods.groupby("method").validated_score.median()
    assert all(x[0] == medians[name] for name, (x, _) in rows.items())
    assert sorted(rows, key=lambda name: rows[name][1][0]) == list(medians.sort_values(ascending=False).index)
    assert one(figure, "recursive:strong").get_width() == accepted(table, "strong").recursive.median()
    assert not found(figure, "recursive:cnn")


# ----------------------------------------------------------------------------------------------- figures of images


@pytest.fixture
def drawn():
    """Images, masks and two models' maps of them."""
    rng = np.random.default_rng(0)
    images, masks = rng.uniform(size=(2, 3, 8, 8))
    maps = {
        name: SimpleNamespace(
            label=name,
            heat=rng.uniform(size=(3, 8, 8)),
            threshold=0.4,
            naive_score=0.25,
            optimal_score=score,
            recursive_accuracy=0.6,
            record={"test": {"accuracy": 0.98}},
        )  # fmt: skip
        for name, score in (("Grad-CAM", 0.9), ("PiNet", 0.95))
    }
    return images, (masks > 0.8).astype(float), maps


def test_examples_show_each_map_and_what_exceeds_its_threshold(drawn):
    images, masks, maps = drawn
    figure = pictures.examples(*drawn)
    shown = np.array([ax.images[0].get_array() for ax in figure.axes if ax.images and ax.get_aspect() == 1.0])
    shown = shown.reshape(3, 6, 8, 8)
    np.testing.assert_array_equal(shown[:, 0], images)
    np.testing.assert_array_equal(shown[:, 1], masks)
    for column, model in ((2, maps["Grad-CAM"]), (4, maps["PiNet"])):
        np.testing.assert_array_equal(shown[:, column], model.heat)
        np.testing.assert_array_equal(shown[:, column + 1], model.heat > 0.4)
    titles = [ax.get_title() for ax in figure.axes[2:6]]
    assert titles == ["as is 25.0", "threshold 90.0", "as is 25.0", "threshold 95.0"]


@pytest.mark.parametrize("look", ["hard", "soft"])
def test_the_identity_is_added_up_from_what_is_drawn(drawn, look):
    (image, *_), _, maps = drawn
    scores = maps["PiNet"].heat[0]
    figure = pictures.alignment(image, scores, scale=0.5, bias=-1.25, logit=7.0, second_look=look)
    panels = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    drawn_sum = (panels[2] if look == "hard" else panels[1]).sum()
    assert len(panels) == (3 if look == "hard" else 2)
    assert one(figure, "evidence").get_width() == pytest.approx(0.5 * drawn_sum)
    assert one(figure, "bias").get_width() == -1.25
    assert one(figure, "logit").get_width() == pytest.approx(0.5 * drawn_sum - 1.25)
    assert any("+7.00: triangle" in text for text in texts(figure))
    other = pictures.alignment(image, scores, scale=0.5, bias=-9.0, logit=-7.0, second_look=look, target="square")
    assert any("7.00: no square" in text for text in texts(other))


def test_the_key_figure_has_the_maps_and_numbers_of_every_model(drawn):
    images, masks, maps = drawn
    figure = pictures.key(images[1], masks[1], maps, index=1)
    panels = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    for panel, model in zip(panels[1:], maps.values(), strict=True):
        np.testing.assert_allclose(panel, shared.overlay(images[1], model.heat[1]))
    for name, values in {"accuracy": [0.98, 0.98], "naive": [0.25, 0.25], "optimal": [0.9, 0.95],
                         "recursive": [0.6, 0.6]}.items():  # fmt: skip
        assert [bar.get_width() for bar in found(figure, name)] == values


def test_samples_outline_the_triangles(drawn):
    images, masks, _ = drawn
    figure = pictures.samples(images, masks, counts=[0, 1, 2])
    assert [ax.get_title() for ax in figure.axes] == ["0 triangles", "1 triangle", "2 triangles"]
    assert len(found(figure, "outline")) == 3
    squares = pictures.samples(images, masks, [1, 2, 2], target="square")
    assert [ax.get_title() for ax in squares.axes] == ["1 square", "2 squares", "2 squares"]


def test_pictures_are_drawn_without_a_warning(drawn):
    images, masks, maps = drawn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (
            pictures.samples(images, masks),
            pictures.examples(images[:1], masks[:1], maps),
            pictures.alignment(images[0], np.zeros((8, 8)), 1.0, 0.0, 0.0),
            pictures.key(images[0], masks[0], maps),
        ):
            figure.draw_without_rendering()
