"""An explanation is the sum that it says it is, and nothing outside its boxes has a say."""

from types import SimpleNamespace

import pytest
import torch
from proto_patches import SIZE, batches, field, field_of, images, net
from torch.nn import functional as F

from helpers.attribution.base import evaluating
from helpers.config import ConfigError
from helpers.prototypes.explanations import explain, hidden_by_upsampling, proof, provenance_table, training_patch
from helpers.prototypes.mapping import upsample_box
from helpers.prototypes.projection import push


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def pushed(**settings):
    model, data = net(**settings), images()
    if model.head.__class__.__name__ != "ProtoHead":
        with torch.no_grad():
            model.head.weight.add_(torch.linspace(-0.3, 0.4, model.head.weight.numel()).view_as(model.head.weight))
    push(model, batches(data))
    return model, data


@pytest.mark.parametrize("readout_type", ["proto", "sparse", "linear"])
def test_contributions_sum_to_the_logit(readout_type):
    """Property 10."""
    model, x = pushed(readout_type=readout_type)[0], images(4, seed=1)[0]
    for n in range(4):
        with torch.no_grad(), evaluating(model):
            logits = model(x[n : n + 1]).logits[0]
        for c in (None, 0, 2):
            seen = explain(model, x[n], field_of(model), class_index=c)
            assert seen.predicted == logits.argmax() and seen.explained == (seen.predicted if c is None else c)
            assert seen.logit == pytest.approx(float(logits[seen.explained]))
            assert sum(e.contribution for e in seen.evidence) == pytest.approx(seen.logit, rel=1e-5, abs=1e-4)
            own = set(model.own[seen.explained].nonzero().flatten().tolist())
            assert {e.prototype for e in seen.evidence} == (set(range(12)) if readout_type == "linear" else own)


def test_what_a_piece_of_evidence_says():
    model, (x, *_) = pushed()
    one = field_of(model)
    with torch.no_grad(), evaluating(model):
        output = model(x[:1])
    for e in explain(model, x[0], one, class_index=1).evidence:
        heat = output.similarity_map[:, e.prototype, None]
        assert e.similarity == e.contribution == pytest.approx(float(heat.max()), rel=1e-5)
        assert e.cell == divmod(int(heat.argmax()), 8)
        assert e.box == one.box(*e.cell) and e.source_box == one.box(*e.source_cell)
        assert e.upsampled_box == tuple(upsample_box(heat, (SIZE, SIZE))[0, 0].tolist())
        assert e.source_image == model.source_image[e.prototype]
        assert e.source_cell == tuple(model.source_cell[e.prototype].tolist())


def test_the_image_that_a_prototype_comes_from_shows_its_patch():
    """The evidence of a training image for its own prototype is the patch itself."""
    model, (x, labels, indices) = pushed()
    image = int(model.source_image[0])
    seen = explain(model, x[indices == image][0], field_of(model), class_index=0)
    first = seen.evidence[0]
    assert first.source_image == image and first.cell == first.source_cell and first.box == first.source_box


@pytest.mark.parametrize("by", ["contribution", "similarity"])
def test_the_order_and_the_first_few(by):
    model, (x, *_) = pushed(readout_type="linear")
    whole = explain(model, x[0], field_of(model), by=by)
    values = [getattr(e, by) for e in whole.evidence]
    assert values == sorted(values, reverse=True) and len(values) == 12
    assert explain(model, x[0], field_of(model), by=by, top=5).evidence == whole.evidence[:5]


def test_before_the_first_projection_there_is_no_that():
    model, (x, *_) = net(), images()
    assert all(e.source_box is None and e.source_image == -1 for e in explain(model, x[0], field_of(model)).evidence)
    assert (provenance_table(model, field_of(model)).drop(columns=["prototype", "class"]).to_numpy() == -1).all()


def test_pixels_outside_the_box_change_nothing():
    """Property 3."""
    model, (x, *_) = pushed()
    for n in range(3):
        for prototype in (0, 7):
            proved = proof(model, x[n], prototype, field_of(model))
            assert proved.outside == 0  # to the bit
            assert proved.inside > 0.01 and proved.elsewhere >= 0
            assert proved.box == field_of(model).box(*proved.cell)
    assert proof(model, x[0], 0, field_of(model)) == proof(model, x[0], 0, field_of(model))
    assert model.training  # as before


def test_a_box_that_is_too_small_is_found_out():
    model, (x, *_) = pushed()
    small = field(SIZE, 3, 4, -1, 8)
    assert proof(model, x[0], 0, small).outside > 0.01


def test_the_best_match_may_move_elsewhere():
    model, (x, *_) = pushed()
    rises = [proof(model, x[n], prototype, field_of(model)).elsewhere for n in range(4) for prototype in range(4)]
    assert max(rises) > 0


def test_upsampling_hides_what_a_similarity_depends_on():
    model, (x, *_) = pushed(kernel=15)
    one = field_of(model)
    found = [hidden_by_upsampling(model, x[n], prototype, one) for n in range(4) for prototype in (0, 4, 8)]
    for hidden in found:
        assert 0 <= hidden.share <= 1 and 0 <= hidden.mean_change <= hidden.change
        assert (hidden.share > 0) == (hidden.change > 0)
    assert max(hidden.change for hidden in found) > 0.01


def test_a_source_is_looked_up_by_its_official_index():
    _, (x, _, indices) = pushed()
    part = SimpleNamespace(indices=indices, pixels=lambda rows: x[rows])
    patch = training_patch(part, int(indices[5]), (2, 9, 4, 8))
    assert torch.equal(patch, x[5, :, 2:9, 4:8])
    with pytest.raises(ConfigError, match="training image 2 is not among the 24"):
        training_patch(part, 2, (0, 1, 0, 1))


def test_the_table_of_provenance():
    model, _ = pushed()
    one = field_of(model)
    table = provenance_table(model, one)
    assert table["prototype"].tolist() == list(range(12)) and table["class"].tolist() == model.prototype_class.tolist()
    assert table["image"].tolist() == model.source_image.tolist()
    for row in table.itertuples():
        assert (row.y0, row.y1, row.x0, row.x1) == one.box(row.row, row.column)
        assert [row.row, row.column] == model.source_cell[row.prototype].tolist()
    with pytest.raises(ValueError, match="they are another net's"):
        provenance_table(model, field(SIZE, 7, 8, 0, 4))


def test_bad_input_is_named():
    model, (x, *_) = pushed()
    one = field_of(model)
    for call, says in [
        (lambda: explain(model, x[0], one, class_index=3), "no class 3: there are 0 to 2"),
        (lambda: explain(model, x[0], one, by="contributions"), "did you mean contribution"),
        (lambda: explain(model, x[0], one, top=0), "top must be at least 1"),
        (lambda: proof(model, x[0], 12, one), "no prototype 12: there are 0 to 11"),
        (lambda: hidden_by_upsampling(model, x[0], -1, one), "no prototype -1"),
        (lambda: proof(model, x[0], 0, one, draws=0), "draws must be at least 1"),
    ]:
        with pytest.raises(ConfigError, match=says):
            call()
    for image, fields, says in [
        (x[:1], one, "expected one image"),
        (F.pad(x[0], (0, 1)), one, "expected one image"),
        (x[0], field(SIZE, 7, 8, 0, 4), "they are another net's"),
    ]:
        with pytest.raises(ValueError, match=says):
            explain(model, image, fields)
