"""The explorer of prototypes, driven as plain Python; its numbers are those of the library."""

from dataclasses import replace

import ipywidgets
import numpy as np
import proto_patches
import pytest
import torch
from PIL import ImageColor
from proto_small import check_prose_calls

from helpers import widgets
from helpers.config import ConfigError, data_config
from helpers.data import toybirds
from helpers.data.bird_scenes import PARTS
from helpers.data.toybirds import ToyBirdsSettings
from helpers.prototypes import controls, drawings, explanations, models, presets, projection, views
from helpers.prototypes.explore import Explorer
from helpers.prototypes.models import Classifier
from helpers.prototypes.pipelines import pipelines
from helpers.prototypes.sets import sets
from helpers.prototypes.views import AS_IT_IS, REMOVED, Edit, Lab

pytestmark = pytest.mark.usefixtures("one_thread")
BIRDS = ToyBirdsSettings(size=32, classes=6)
NO_BEAK = Edit("beak", REMOVED)


def pushed(net, settings, count):
    """``net``, its prototypes patches of the first ``count`` training birds."""
    x, labels = inputs(range(count), settings, "train")
    projection.push(net.eval(), [(x, labels, torch.arange(count))])
    return net


def inputs(indices, settings, split):
    """(x, labels) as a data set has them."""
    birds = toybirds.batch(toybirds.split(split)[0], indices, settings)
    return pipelines()["ToyBirds"].normalise((birds.images * 255).round().to(torch.uint8)), birds.labels


@pytest.fixture(scope="module")
def nets():
    """Whose cells see 7 x 7 pixels, two prototypes a class; and 13 x 13, five a class, of which every class has a part
    in every logit."""
    linear = {"readout_type": "linear", "distance": "l2"}
    few = pushed(proto_patches.net(6, 2), BIRDS, 24)
    return {"few": few, "many": pushed(proto_patches.net(6, 5, seed=1, kernel=9, **linear), BIRDS, 24)}


@pytest.fixture
def explorer(nets):
    return Explorer(nets, BIRDS)


@pytest.fixture(scope="module")
def untouched(nets):
    """An explorer that stays as it opens."""
    return Explorer(nets, BIRDS)


@pytest.fixture(scope="module")
def lab(nets):
    return Lab(nets, BIRDS)


# ------------------------------------------------------------------------------------------------------ the birds


def test_birds_are_those_that_nets_are_tested_and_trained_on():
    """Which have all 20 classes."""
    data, settings = sets(presets.Dataset(size=32, n_test=1000), 0), ToyBirdsSettings(size=32)
    lab = Lab({"a": proto_patches.net(20, 1)}, settings)
    rows = [0, 7, 44]
    assert torch.equal(torch.stack([lab.inputs(lab.pixels(row, None))[0] for row in rows]), data.test.inputs(rows))
    assert torch.equal(lab.sources((3, 50)), data.train.pixels([3, 50]))
    assert lab.labels.tolist() == data.test.labels.tolist() and lab.classes == data.classes


@pytest.mark.parametrize("part", ["beak", "belly", "eye"])
def test_an_edit_redraws_one_part_and_nothing_else(lab, part):
    one = toybirds.sample(toybirds.split("test")[0], 5, BIRDS)
    for what in views.choices(part):
        edit = None if what == AS_IT_IS else Edit(part, what)
        change = {"without": {part}} if what == REMOVED else {"change": {part: what}} if edit else {}
        expected = toybirds.render(one.bird, **change).images[0]
        assert (lab.pixels(5, edit) - expected).abs().max() <= 0.5 / 255 + 1e-6
    assert views.choices(part)[:2] == (AS_IT_IS, REMOVED) and ("red" in views.choices(part)) == (part != "eye")


def test_a_part_is_described_as_in_the_table(lab):
    config = data_config("toybirds")
    for kind, words in list(config["classes"].items())[:6]:
        bird = lab.rows[lab.classes.index(kind)][0]
        assert [lab.described(bird, part) for part in config["parts"]] == words


# ------------------------------------------------------------------------------------------------- what nets answer


@pytest.mark.parametrize("by", ["contribution", "similarity"])
@pytest.mark.parametrize("name", ["few", "many"])
def test_evidence_is_that_of_the_library(lab, nets, name, by):
    x, field = lab.inputs(lab.pixels(9, None))[0], lab.fields[name]
    for explained in ("predicted", "true", 3):
        k = {"predicted": None, "true": int(lab.labels[9])}.get(explained, explained)
        expected = explanations.explain(nets[name], x, field, class_index=k, top=4, by=by)
        look = lab.look(name, 9, None, explained, by, "rf")
        assert (look.explained, look.before.predicted) == (expected.explained, expected.predicted)
        assert len(look.evidence) == (2 if name == "few" else 4)
        for ours, theirs in zip(look.evidence, expected.evidence, strict=True):
            assert (ours.prototype, ours.box) == (theirs.prototype, theirs.box)
            assert ours.upsampled_box == theirs.upsampled_box
            assert ours.before == ours.after == pytest.approx(theirs.contribution)
            assert (ours.similarity, ours.source) == (pytest.approx(theirs.similarity), theirs.source_image)
            assert ours.source_box == theirs.source_box and ours.before_box == ours.box


def test_all_contributions_of_a_class_sum_to_its_logit(lab):
    look = lab.look("few", 4, NO_BEAK, "predicted", "contribution", "boxes")
    for values, seen in (("before", look.before), ("after", look.after)):
        total = sum(getattr(evidence, values) for evidence in look.evidence)
        assert total == pytest.approx(float(seen.logits[look.explained]), rel=1e-5)


def test_prototypes_keep_their_places_when_the_bird_is_edited(lab, nets):
    edit = Edit("body", "plum")
    before = lab.look("many", 4, None, "predicted", "contribution", "rf")
    after = lab.look("many", 4, edit, "predicted", "contribution", "rf")
    assert after.explained == before.explained
    expected = explanations.explain(nets["many"], lab.inputs(lab.pixels(4, edit))[0], lab.fields["many"],
                                    class_index=after.explained)  # fmt: skip
    expected = {e.prototype: e for e in expected.evidence}
    for old, new in zip(before.evidence, after.evidence, strict=True):
        own = expected[old.prototype]
        assert (new.prototype, new.before, new.before_box) == (old.prototype, old.after, old.box)
        assert new.after == pytest.approx(own.contribution) and new.box == own.box
        assert new.upsampled_box == own.upsampled_box


def test_a_prototype_is_the_patch_of_the_training_bird_that_is_shown(lab, nets):
    for name, net in nets.items():
        for evidence in lab.look(name, 3, None, "predicted", "contribution", "boxes").evidence:
            with torch.no_grad():
                distance = net(lab.inputs(evidence.source_pixels)).distances[0, evidence.prototype]
            assert distance[tuple(net.source_cell[evidence.prototype])] < 1e-4


def test_before_the_first_projection_there_is_no_patch(monkeypatch):
    explorer = Explorer({"new": proto_patches.net(6, 3).eval()}, BIRDS)
    assert {(e.source, e.source_pixels, e.source_box) for e in explorer.look.evidence} == {(-1, None, None)}
    assert "not projected yet" in explorer.controls.prototypes[0].panels["that"].note.value
    assert explorer.static().startswith(b"\x89PNG")


def test_what_is_hidden_is_the_share_outside_the_upsampled_box(lab):
    for evidence in lab.look("many", 8, None, "predicted", "contribution", "boxes").evidence:
        masks = np.zeros((2, 32, 32), bool)
        for mask, (y0, y1, x0, x1) in zip(masks, (evidence.box, evidence.upsampled_box), strict=True):
            mask[y0:y1, x0:x1] = True
        assert evidence.hidden == pytest.approx((masks[0] & ~masks[1]).sum() / masks[0].sum())


# ------------------------------------------------------------------------------------------------------- reactions


@pytest.mark.parametrize("name", ["few", "many"])
@pytest.mark.parametrize("edit", [NO_BEAK, Edit("wing", REMOVED), Edit("body", "plum"), Edit("tail", "stick")])
def test_what_reacts_has_changed_pixels_in_its_box(lab, name, edit):
    looks = [lab.look(name, image, edit, "predicted", "contribution", "boxes") for image in range(6)]
    looks = [look for look in looks if look.changed.any()]
    assert len(looks) >= 3
    for look in looks:
        change = look.after.similarities - look.before.similarities
        assert [r.prototype for r in look.reactions] == change.abs().argsort(descending=True, stable=True)[:5].tolist()
        for reaction in look.reactions:
            p = reaction.prototype
            assert (reaction.before, reaction.after) == (look.before.similarities[p], look.after.similarities[p])
            assert reaction.inside > 0 or reaction.before == reaction.after
            stronger = look.after if reaction.after > reaction.before else look.before
            box = lab.fields[name].box(*divmod(int(stronger.cells[p]), 8))
            y0, y1, x0, x1 = box
            assert reaction.inside == pytest.approx(look.changed[y0:y1, x0:x1].sum() / look.changed.sum())


def test_what_an_edit_changes_is_where_the_part_was(lab):
    bird = lab.bird(2, None)
    look = lab.look("few", 2, Edit("wing", REMOVED), "predicted", "contribution", "boxes")
    assert look.changed.any() and not (look.changed & (bird.masks[0, PARTS.index("wing")].numpy() == 0)).any()


def test_without_a_change_nothing_reacts(lab):
    own = lab.described(3, "beak").split()[0]
    assert lab.look("few", 3, None, "predicted", "contribution", "boxes").reactions == ()
    same = lab.look("few", 3, Edit("beak", own), "predicted", "contribution", "boxes")
    assert same.reactions == () and not same.changed.any()


# ----------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("name", ["few", "many"])
def test_noise_outside_the_box_leaves_a_similarity_and_outside_the_upsampled_one_it_does_not(lab, name):
    moved = []
    for image in range(4):
        for evidence in lab.look(name, image, NO_BEAK, "predicted", "contribution", "boxes").evidence:
            field, drawn = lab.noise(name, image, NO_BEAK, evidence, draw=0)
            assert field.before == drawn.before == evidence.similarity
            assert field.after == pytest.approx(field.before, abs=1e-5)
            if evidence.hidden > 0:
                moved.append(abs(drawn.after - drawn.before))
            else:
                assert drawn.after == pytest.approx(drawn.before, abs=1e-5)
            for noise, box in ((field, evidence.box), (drawn, evidence.upsampled_box)):
                same = (noise.pixels - lab.pixels(image, NO_BEAK)).abs().amax(0) < 1e-5
                y0, y1, x0, x1 = box
                assert noise.box == box and same[y0:y1, x0:x1].all()
                same[y0:y1, x0:x1] = False
                assert same.float().mean() < 0.05
    assert moved and min(moved) > 1e-3


def test_other_noise_is_other_noise_and_the_same_noise_the_same(explorer):
    explorer.select(noise=0)
    first = explorer.noises
    explorer.controls.again.click()
    assert explorer.state.draw == 1 and not torch.equal(explorer.noises[0].pixels, first[0].pixels)
    explorer.select(draw=0)
    assert torch.equal(explorer.noises[0].pixels, first[0].pixels) and explorer.noises[1].after == first[1].after


def test_noise_of_a_prototype_that_is_not_there_is_none(explorer):
    explorer.select(net="many", noise=3)
    assert len(explorer.noises) == 2 and explorer.controls.noise.value == 3
    explorer.select(net="few")
    assert explorer.noises == () and explorer.controls.noise.value is None and explorer.controls.again.disabled


# -------------------------------------------------------------------------------------------------------- choices


def test_it_opens_on_the_first_bird_as_it_is(untouched):
    state = untouched.state
    assert (state.net, state.image, state.bird, state.edit, state.noise) == ("few", 0, None, None, None)
    assert untouched.look.before is untouched.look.after


def test_what_the_notebook_tells_to_call_works(explorer):
    check_prose_calls(explorer, "05_prototypes")


def test_one_steps_through_all_birds_or_those_of_a_class(explorer):
    explorer.step(-1)
    assert explorer.state.image == 999
    explorer.step()
    assert explorer.state.image == 0
    explorer.select(bird=3)
    rows = np.flatnonzero(explorer.lab.labels == 3).tolist()
    explorer.step()
    assert explorer.state.image == rows[1]
    other = explorer.lab.rows[2][4]
    explorer.select(image=other)
    assert explorer.state.bird == 2, "a bird of another class brings its class"
    explorer.select(bird=None)
    assert explorer.state.image == other


def test_another_part_comes_as_it_is_unless_one_says(explorer):
    explorer.select(part="tail", what="fan")
    explorer.select(image=4)
    assert explorer.state.edit == Edit("tail", "fan"), "the edit stays, from bird to bird"
    explorer.select(part="eye")
    assert explorer.state.edit is None
    explorer.select(part="legs", what="long")
    assert explorer.state.edit == Edit("legs", "long")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": "fwe"}, "there is no net 'fwe': did you mean few"),
        ({"image": 1000}, "there is no bird 1000: they are 0 to 999"),
        ({"image": -1}, "there is no bird -1"),
        ({"bird": 6}, "there is no class 6: they are 0 to 5"),
        ({"explained": -2}, "there is no class -2"),
        ({"explained": "best"}, "explained"),
        ({"part": "foot"}, "a bird has no 'foot'"),
        ({"what": "hooke"}, "the beak cannot be 'hooke': did you mean hooked"),
        ({"part": "eye", "what": "red"}, "the eye cannot be 'red'"),
        ({"by": "size"}, "by"),
        ({"spread": "random"}, "spread"),
        ({"noise": 4}, "noise"),
        ({"draw": -1}, "draw"),
        ({"imag": 3}, "did you mean image"),
    ],
)
def test_what_cannot_be_chosen_is_refused_and_nothing_changes(untouched, changes, message):
    before, look = untouched.state, untouched.look
    with pytest.raises(ConfigError, match=message):
        untouched.select(**changes)
    assert untouched.state is before and untouched.look is look


def test_a_bird_of_another_class_is_refused(untouched):
    own = untouched.lab.classes[untouched.lab.labels[8]]
    with pytest.raises(ConfigError, match=f"bird 8 is of class {own}, not"):
        untouched.select(image=8, bird=(int(untouched.lab.labels[8]) + 1) % 6)


def test_controls_do_what_calls_do(explorer):
    controls = explorer.controls
    controls.net.value, controls.image.value, controls.part.value = "many", 12, "tail"
    controls.what.value, controls.explained.value, controls.by.value = "stick", "true", "similarity"
    controls.spread.value, controls.noise.value = "upsample", 2
    state = explorer.state
    assert (state.net, state.image, state.edit) == ("many", 12, Edit("tail", "stick"))
    assert (state.explained, state.by, state.spread, state.noise) == ("true", "similarity", "upsample", 2)
    controls.bird.value = other = (int(explorer.lab.labels[12]) + 1) % 6
    assert explorer.state.image == controls.image.value == explorer.lab.rows[other][0]


def test_controls_follow_calls_without_answering_back(explorer, monkeypatch):
    explorer.select(net="many", bird=4, part="wing", what="barred", explained=2)
    explorer.select(by="similarity", spread="boxes", noise=1)
    calls = []
    monkeypatch.setattr(explorer, "become", calls.append)
    explorer.refresh()
    assert calls == []
    for name in set(type(explorer.state).model_fields) - {"draw"}:
        assert getattr(explorer.controls, name).value == getattr(explorer.state, name), name
    assert ("shape: barred", "barred") in explorer.controls.what.options
    assert ("colour: red", "red") in explorer.controls.what.options


def test_what_a_control_asks_for_in_vain_is_said_to_the_person(explorer):
    explorer.controls.image.value = 5000
    assert "there is no bird 5000: they are 0 to 999" in explorer.message.value
    assert explorer.state.image == explorer.controls.image.value == 0
    explorer.controls.image.value = 3
    assert explorer.message.value == ""


# ---------------------------------------------------------------------------------------------------- what is shown


def test_panels_say_what_the_look_holds(explorer):
    explorer.select(net="many", image=2, part="body", what="plum", spread="upsample")
    controls, look, lab = explorer.controls, explorer.look, explorer.lab
    for seen, panel in zip(look.evidence, controls.prototypes, strict=True):
        kind = lab.classes[seen.prototype // 5]
        assert f"prototype {seen.prototype} of {kind}</b> adds {drawings.number(seen.after)}" in panel.head.value
        change = "unchanged" if seen.after == seen.before else drawings.number(seen.after - seen.before, True)
        assert f", {change} by the edit" in panel.head.value
        assert f"training bird {seen.source}" in panel.panels["that"].note.value
        assert f"leaves out {seen.hidden:.0%}" in panel.panels["map"].note.value
        assert panel.panels["map"].image.value == widgets.png(
            drawings.mapped(lab.pixels(2, explorer.state.edit), seen, panel.tint)
        )
    assert "up-sampled" in controls.prototypes[0].panels["map"].title.value
    for reaction in look.reactions:
        assert f"<b>{drawings.number(reaction.after - reaction.before, True)}</b>" in controls.reactions.value
        assert f"{reaction.inside:.0%}" in controls.reactions.value
    assert f"{look.changed.sum()} of 1024 pixels change" in controls.own.value
    assert f"says {lab.classes[look.after.predicted]}" in controls.birds["bird"].note.value
    assert f"says {lab.classes[look.before.predicted]}" in controls.birds["before"].note.value
    for k in {look.explained, look.after.predicted, int(lab.labels[2])}:
        change = f"{drawings.number(look.before.logits[k])} → {drawings.number(look.after.logits[k])}"
        assert f">{lab.classes[k]}</text>" in controls.logits.value and change in controls.logits.value


def test_noise_panels_say_what_it_does(explorer):
    assert "Choose a prototype" in explorer.controls.noise_note.value
    explorer.select(net="many", noise=0)
    field, drawn = (panel.note.value for panel in explorer.controls.noises.values())
    assert "unchanged" in field and f"{explorer.noises[1].after:.4f}" in drawn
    assert explorer.controls.noise_note.value == ""
    everything = replace(explorer.noises[0], box=(0, 32, 0, 32))
    assert controls.moved(everything, 32) == "the box is the whole image"


def test_an_edit_without_effect_is_explained(explorer):
    assert "Remove or change a part" in explorer.controls.reactions.value
    explorer.select(what=explorer.lab.described(0, "beak").split()[0])
    assert "No pixel changes" in explorer.controls.reactions.value
    assert "0 of 1024 pixels change" in explorer.controls.own.value


def test_as_many_prototypes_as_the_class_has_are_shown(explorer):
    for net, count in (("few", 2), ("many", 4), ("few", 2)):
        explorer.select(net=net)
        displayed = [panel.widget.layout.display != "none" for panel in explorer.controls.prototypes]
        assert displayed == [True] * count + [False] * (4 - count)


def test_only_what_changes_is_drawn_again(explorer, monkeypatch):
    explorer.select(net="many", image=3)
    shown = {part: panel.image.value for part, panel in explorer.controls.prototypes[0].panels.items()}
    for name in ("patch", "origin", "shown", "numbered"):
        monkeypatch.setattr(drawings, name, lambda *_: pytest.fail("drawn again"))
    monkeypatch.setattr(drawings, "mapped", lambda *_: np.zeros((4, 4, 3), np.uint8))
    explorer.select(spread="upsample")
    panels = explorer.controls.prototypes[0].panels
    assert {part for part, panel in panels.items() if panel.image.value != shown[part]} == {"map"}


def test_only_core_widgets_that_papermill_survives_and_each_has_a_name(untouched):
    def inside(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from inside(child)

    found = list(inside(untouched.widget))
    kinds = {type(widget) for widget in found if not isinstance(widget, ipywidgets.Image)}
    assert all(kind.__module__.startswith("ipywidgets.") for kind in kinds) and ipywidgets.Output not in kinds
    for name in set(type(untouched.state).model_fields) - {"draw"}:
        control = getattr(untouched.controls, name)
        assert control in found and (control.description or control.tooltips), name
    assert all(widget.tooltip for widget in found if isinstance(widget, ipywidgets.Button))


def test_it_displays_a_picture_of_what_is_chosen_and_then_its_controls(explorer, monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)
    explorer._ipython_display_()
    assert shown[0].data.startswith(b"\x89PNG") and shown[1] is explorer.widget
    one = explorer.static()
    assert one == explorer.static() and len(one) < 100_000
    explorer.select(part="body", what="removed")
    assert explorer.static() != one


# --------------------------------------------------------------------------------------------------------- drawings


def test_a_box_is_outlined_along_its_inner_edge(lab):
    blank = np.zeros((64, 64, 3), np.uint8)
    solid = drawings.outlined(blank, (4, 20, 10, 32), "#ff0000")
    dashed = drawings.outlined(blank, (4, 20, 10, 32), "#ff0000", dashed=True)
    inside = np.zeros((64, 64), bool)
    inside[8:40, 20:64] = True
    ring = inside.copy()
    ring[12:36, 24:60] = False
    line = np.zeros_like(ring)
    line[9:39, 21:63] = True
    line[11:37, 23:61] = False
    red = (solid == [255, 0, 0]).all(2)
    assert (red == line).all() and (solid[ring & ~line] == 255).all() and not solid[~ring].any() and not blank.any()
    some = (dashed == [255, 0, 0]).all(2)
    assert 0.3 < some.sum() / line.sum() < 0.7 and not (some & ~line).any() and (dashed[ring & ~some] == 255).all()


@pytest.mark.parametrize("box", [(0, 128, 0, 128), (112, 128, 112, 128), (20, 60, 100, 128)])
def test_boxes_have_their_numbers_within_the_picture_even_if_they_are_the_same(box):
    picture = drawings.numbered(torch.zeros(3, 128, 128), [box] * 4)
    for tint in drawings.TINTS[1:]:  # the first one is also that of the outline in front
        y, x = np.nonzero((picture == ImageColor.getrgb(tint)).all(2))
        assert (np.ptp(y) + 1, np.ptp(x) + 1) == (16, 16)


def test_what_is_outside_a_patch_is_pale_and_inside_it_is_as_it_is(lab):
    pixels, box = lab.pixels(0, None), (8, 24, 8, 24)
    picture, plain = drawings.patch(pixels, box, "#000000"), drawings.shown(pixels)
    assert (picture[22:42, 22:42] == plain[22:42, 22:42]).all()
    assert (picture[:16] >= plain[:16]).all() and picture[:16].mean() > plain[:16].mean() + 5


def test_a_map_is_grey_at_its_least_and_hot_at_its_greatest_value():
    pixels = torch.full((3, 4, 4), 0.5)
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 3.0
    picture = drawings.heated(pixels, heat)[::2, ::2]
    assert (picture[0, 0] == 127).all() and picture[1, 2].min() > 150 and np.ptp(picture[1, 2].astype(int)) > 20
    assert (drawings.heated(pixels, np.ones((4, 4), np.float32)) == 127).all(), "an even map has no greatest value"


# ------------------------------------------------------------------------------------------- what cannot be opened


def test_what_there_is_nothing_to_see_of_is_refused_in_words(nets):
    with pytest.raises(ConfigError, match="no net to explore"):
        Explorer({}, BIRDS)
    with pytest.raises(ConfigError, match="the net few knows 6 classes, the birds have 20"):
        Explorer(nets)
    with pytest.raises(ConfigError, match="the net plain is a Classifier, which has no prototypes"):
        Explorer({"plain": Classifier(torch.nn.Conv2d(3, 4, 3), 4, 6)}, BIRDS)


# ---------------------------------------------------------------------------------------------------------- speed


def test_no_event_takes_above_200_ms_of_a_core(slowest_event):
    """With nets and birds of full size: 150 ms at most where a core has AVX-512, a tenth more where it has not."""
    settings = ToyBirdsSettings()
    nets = {}
    for stage in ("stage3", "stage4"):
        net = models.build(presets.Model(feature_layer=stage), 20, settings.size, seed=0)
        net.source_image[:], net.source_cell[:] = torch.arange(100), 3
        nets[stage] = net
    events = [{"image": 7}, {"image": 30}, {"bird": 5}, {"part": "wing"}, {"what": REMOVED}, {"what": "plum"},
              {"spread": "upsample"}, {"spread": "rf"}, {"by": "similarity"}, {"explained": 4}, {"noise": 1},
              {"draw": 2}, {"noise": None}, {"net": "stage4"}, {"what": "blue"}]  # fmt: skip
    seconds, event = slowest_event(lambda: Explorer(nets, settings), events)
    assert seconds < 0.2, event
