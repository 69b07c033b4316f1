"""The prototypes study: what is trained, kept, read and refused, what is measured, and what is claimed of it."""

import pandas as pd
import pytest
import torch

from helpers import artifacts, config
from helpers.artifacts import ArtifactError
from helpers.config import ConfigError
from helpers.ledger import Ledger
from helpers.prototypes import claims, evaluate, examples, figures, fits, goldilocks, publish, released, study, tables
from helpers.prototypes.presets import KINDS, PrototypesStudy
from helpers.prototypes.sets import sets
from helpers.prototypes.study import Member, Shelf, collect, frame, members

GROUPS = ("birdnet@stem", "birdnet@stem/protopnet", "birdnet@stem/classifier")


def small(out="", **changes):
    """Birds of 32 pixels, and nets that know little after two epochs."""
    return PrototypesStudy().override(
        {
            **PrototypesStudy.presets["quick"], "preset": "quick", "out": str(out), "groups": GROUPS, "seed": 3,
            "dataset.size": 32, "dataset.n_train": 60, "dataset.n_test": 40, "model.num_prototypes": 40,
            "model.prototype_dim": 8, "train.readout_push_epochs": 1, **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, settings that read it, records) of a study that was trained."""
    out = tmp_path_factory.mktemp("prototypes")
    records = collect(small(out, retrain=True))
    return out, small(out), records


def test_groups_are_a_cut_and_a_kind_of_head():
    member = Member(small(), "birdnet@stage2/protopnet", 3)
    assert (member.cut, member.kind, member.name) == (
        "birdnet@stage2", "protopnet", "toybirds/birdnet@stage2/protopnet/3",
    )  # fmt: skip
    model = member.fit.study.model
    assert (model.feature_extractor, model.feature_layer, model.distance) == ("birdnet", "stage2", "l2")
    assert Member(small(), "timm:resnet10t@layer2", 3).name == "toybirds/timm-resnet10t@layer2/pixpnet/3"
    assert Member(small(), "birdnet@stem", 3).fit.study.model.readout_type == "proto"


@pytest.mark.parametrize(
    "group, message", [("birdnet", "backbone@cut"), ("birdnet@stem/protonet", "did you mean protopnet")]
)
def test_a_group_that_cannot_be_is_refused(group, message):
    with pytest.raises(ConfigError, match=message):
        Member(small(), group, 0)


def test_a_study_goes_seed_by_seed():
    names = [member.name for member in members(small(seeds=2))]
    assert [name.rsplit("/")[-1] for name in names] == ["3"] * 3 + ["4"] * 3
    assert [name.split("/")[2] for name in names] == [*KINDS] * 2


def test_what_was_trained_is_read(made, monkeypatch):
    out, settings, records = made
    monkeypatch.setattr(study, "run", lambda member: pytest.fail("trained again"))
    assert collect(settings) == records == collect(small(out, retrain=True))
    assert {path.name for path in out.iterdir()} == {"fits", "weights", "results"}


def test_weights_are_those_that_were_trained_in_half_precision(made):
    out, settings, _ = made
    for member in members(settings):
        trained = fits.load(fits.weights_path(out / "fits", member.fit), member.fit)[0].state_dict()
        kept = artifacts.load_tensors(Shelf(out).weights_path(member))[0]
        assert kept.keys() == trained.keys()
        patches = kept.pop("prototypes", None)
        assert all(torch.equal(kept[k].float(), v.half().float() if v.ndim > 1 else v.float())
                   for k, v in trained.items() if k in kept and v.is_floating_point())  # fmt: skip
        if patches is not None:
            assert patches.dtype == torch.float32 and torch.allclose(patches, trained["prototypes"], atol=0.01)
            assert not torch.equal(patches, trained["prototypes"]), "those of the rounded network"


def test_a_record_of_other_settings_is_refused(made):
    out, _, _ = made
    with pytest.raises(ArtifactError, match="other training settings; RETRAIN=True with another OUT"):
        collect(small(out, **{"optimizer.lr": 0.5}))
    with pytest.raises(ArtifactError, match="no results of toybirds/birdnet@stage1"):
        collect(small(out, groups=("birdnet@stage1",)))


def test_swapped_weights_are_refused(made, tmp_path):
    out, _, _ = made
    settings = small(tmp_path)
    for member in members(settings):
        for path in (Shelf(out).weights_path(member), Shelf(out).record_path(member)):
            artifacts.atomic_write(tmp_path / path.relative_to(out), path.read_bytes())
    assert collect(settings)
    first, second, _ = members(settings)
    artifacts.atomic_write(Shelf(tmp_path).weights_path(first), Shelf(tmp_path).weights_path(second).read_bytes())
    with pytest.raises(ArtifactError, match="of other weights; REEVALUATE=True"):
        collect(settings)


def test_reevaluating_gives_the_same_numbers(made):
    out, _, records = made
    again = collect(small(out, reevaluate=True))
    for before, now in zip(records, again, strict=True):
        assert now["measured"] == pytest.approx(before["measured"], rel=1e-4, abs=1e-4)


def test_no_weights_of_a_study_name_a_folder(made):
    out, settings, _ = made
    for member in members(settings):
        assert str(out) not in str(artifacts.load_tensors(Shelf(out).weights_path(member))[1])


def test_prototypes_are_training_patches_of_their_class(made):
    """Property 12, of the weights that are kept."""
    out, settings, _ = made
    net, data = Shelf(out).net(members(settings)[0]), sets(settings.dataset, 3)
    found = evaluate.provenance(net, data.train)
    assert found["patch_difference"] < 1e-5 and found["repeated_images"] == found["unassigned"] == 0
    labels = dict(zip(data.train.indices.tolist(), data.train.labels.tolist(), strict=True))
    assert [labels[image] for image in net.source_image.tolist()] == net.prototype_class.tolist()
    with torch.no_grad():
        net.prototypes[7] += 0.25
        net.source_image[5], net.source_cell[5] = net.source_image[4], net.source_cell[4]
        net.source_image[6] = -1
    found = evaluate.provenance(net, data.train)
    assert found["patch_difference"] >= 0.25 - 1e-5 and found["repeated_images"] == found["unassigned"] == 1


def test_classes_take_turns():
    labels = torch.tensor([2, 2, 0, 1, 0, 2, 1])
    assert labels[evaluate._by_turns(labels)].tolist() == [0, 1, 2, 0, 1, 2, 2]
    assert evaluate._by_turns(labels)[:3].tolist() == [2, 3, 0]


def test_noise_outside_a_box_changes_nothing_and_boxes_are_measured(made):
    _, _, records = made
    for record in records[:2]:
        found = record["measured"]
        assert found["proof_outside"] == 0 < found["proof_inside"]
        assert 0 < found["box"] <= found["max_rf"] + 1e-3 and 0 <= found["hidden_share"] <= 100
    assert "box" not in records[2]["measured"] and 0 <= records[2]["measured"]["accuracy"] <= 100


def test_the_frame_has_a_row_a_number(made):
    _, _, records = made
    table = frame(records)
    assert set(table.group) == {f"birdnet@stem/{kind}" for kind in KINDS} and set(table.data) == {"toybirds"}
    assert len(table) == sum(len(record["measured"]) + 1 for record in records)
    shown = tables.by_group(table)
    assert list(shown.index) == [f"birdnet@stem/{kind}" for kind in KINDS] and (shown["accuracy, %"] != "").all()
    assert tables.differences(table, "accuracy", "birdnet@stem/pixpnet", "birdnet@stem/nothing").empty


def test_deviations_are_not_those_of_rounding_and_times_are_medians():
    for found, said in (
        ([4.0, 4.0 + 1e-9, 4.0], "4.00"), ([4.0, 4.1, 4.2], "4.10 ± 0.10"), ([12.5], "12.5"),
        ([-3.0, -3.0 - 1e-9], "-3.00"), ([float("nan")], ""), ([-1.0, 1.0], "0.00 ± 1.41"),
    ):  # fmt: skip
        assert tables.mean_and_deviation(pd.Series(found)) == said
    table = tables.by_group(pd.concat([rows("minutes", {OURS: [3.8, 52.9, 2.6]}), rows("accuracy", {OURS: [30, 39]})]))
    assert table.loc[OURS].to_dict() == {"accuracy, %": "34.5 ± 6.4", "minutes (median)": "3.8"}


def test_networks_of_the_first_seed_are_shown(made):
    out, settings, _ = made
    nets = examples.nets(settings)
    labels = [member.label for member in members(settings)]
    assert labels == ["birdnet@stem/pixpnet", *GROUPS[1:]]
    assert list(nets) == labels and list(examples.prototype_nets(nets)) == labels[:2]
    shown = examples.show(settings, nets["birdnet@stem/pixpnet"])
    everything = shown.explain(0, top=None)
    assert sum(e.contribution for e in everything.evidence) == pytest.approx(everything.logit, abs=1e-4)
    first = everything.evidence[0]
    y0, y1, x0, x1 = first.source_box
    assert shown.source(first).shape == (y1 - y0, x1 - x0, 3)
    values = [float(name.rsplit(": ")[1]) for name, _, _ in shown.under_noise(0, first)]
    assert values[0] == values[1] != values[2]
    with pytest.raises(ArtifactError, match="RETRAIN=True makes them"):
        examples.nets(settings, Shelf(out / "nowhere"))


def test_pictures_are_drawn(made):
    _, settings, records = made
    shown = examples.show(settings, examples.nets(settings)["birdnet@stem/pixpnet"])
    first = shown.explain(0).evidence[0]
    boxes = (first.box, first.upsampled_box)
    for figure in (
        shown.looks_like(0), figures.sheet(shown.data), figures.noise(shown.under_noise(0, first)),
        figures.mappings(shown.picture(0), shown.maps(0, first.prototype), *boxes), figures.accuracies(frame(records)),
        figures.courses(records), figures.hidden(frame(records)),
    ):  # fmt: skip
        assert figure._repr_png_().startswith(b"\x89PNG")
    drawn = [patch for patch in shown.looks_like(0).axes[0].patches if patch.get_gid() == "box"]
    y0, y1, x0, x1 = first.box
    assert (drawn[0].get_x(), drawn[0].get_y()) == (x0 - 0.5, y0 - 0.5)
    assert (drawn[0].get_width(), drawn[0].get_height()) == (x1 - x0, y1 - y0)


# -------------------------------------------------------------------------------------------------------- claims


def rows(metric, found, seeds=3):
    """A frame of one metric: ``found`` by group, its values by seed."""
    return pd.DataFrame(
        [
            {"group": group, "kind": group.split("/")[1], "seed": seed, "metric": metric, "value": value}
            for group, values in found.items()
            for seed, value in enumerate(values[:seeds])
        ]
    )


OURS = "birdnet@stage3/pixpnet"


@pytest.mark.parametrize(
    "accuracies, seeds, verdict",
    [([96, 97, 98], 3, "holds"), ([94.9, 99, 99], 3, "fails"), ([99, 99, 99], 2, "not verified")],
)
def test_the_target_has_to_be_reached_by_every_seed(accuracies, seeds, verdict):
    ledger = Ledger("test")
    claims.check_target(ledger, rows("accuracy", {OURS: accuracies}, seeds), OURS, "6")
    assert ledger.entries[0].verdict == verdict


def test_competitive_is_two_points_on_average():
    ledger = Ledger("test")
    found = {
        OURS: [95, 95, 95], "birdnet@stage3/classifier": [97, 97, 96.9], "birdnet@stage4/protopnet": [97.2, 97, 97],
    }  # fmt: skip
    claims.check_competitive(ledger, rows("accuracy", found), "6")
    assert [entry.verdict for entry in ledger.entries] == ["reproduced", "differs"]


def test_on_photographs_both_comparisons_stay_on_the_same_cut():
    ledger, cut = Ledger("test"), "resnet50_v1@layer3"
    found = {
        f"{cut}/pixpnet": [60, 61, 62], f"{cut}/classifier": [70, 50, 90], f"{cut}/protopnet": [61, 62, 63],
        "resnet50_v1@layer4/classifier": [0, 0, 0], "resnet50_v1@layer4/protopnet": [99, 99, 99],
    }  # fmt: skip
    claims.check_photographs(ledger, rows("accuracy", found), "6")
    assert [(entry.ours, entry.verdict) for entry in ledger.entries] == [(-9, "differs"), (-1, "reproduced")]


def test_a_small_network_tells_the_toy_birds_apart():
    """Toy birds, property 8, of the networks that were trained for notebook 05."""
    folder = config.ROOT / "results" / "prototypes" / "toybirds" / "birdnet@stage3" / "classifier"
    found = [artifacts.load_json(path)["measured"]["accuracy"] for path in sorted(folder.glob("*.json"))]
    assert len(found) == 3 and min(found) >= 95


def test_grounding_is_lost_by_any_change_outside():
    outside = {OURS: [0.0, 0.0, 1e-3]}
    hidden = {OURS: [0, 0, 0], "birdnet@stage4/protopnet": [50, 60, 100]}
    table = pd.concat([rows("proof_outside", outside), rows("hidden_share", hidden)])
    ledger = Ledger("test")
    claims.check_grounding(ledger, table, "4")
    assert [entry.verdict for entry in ledger.entries] == ["fails", "reproduced"]


def test_projection_and_contributions_are_exact_or_differ():
    good = [rows("patch_difference", {OURS: [1e-6]}), rows("repeated_images", {OURS: [0.0]})]
    twice = [good[0], rows("repeated_images", {OURS: [1.0]})]
    for tables_, verdict in ((good, "holds"), (twice, "fails")):
        ledger = Ledger("test")
        claims.check_projection(ledger, pd.concat(tables_), "5")
        assert ledger.entries[0].verdict == verdict
    for difference, verdict in ((1e-5, "holds"), (1e-3, "fails")):
        ledger = Ledger("test")
        claims.check_contributions(ledger, difference, "3")
        assert ledger.entries[0].verdict == verdict


@pytest.mark.parametrize("accuracy, verdict", [(88.0, "reproduced"), (87.9, "differs")])
def test_a_constrained_cut_may_lose_two_points(accuracy, verdict):
    ledger = Ledger("test")
    cuts = pd.DataFrame({"mean_rf": [20.0, 99.0], "accuracy": [accuracy, 90.0]})
    claims.check_cut(ledger, cuts, "frozen probes, 160 px", "3")
    assert ledger.entries[0].verdict == verdict and "(frozen probes, 160 px)" in ledger.entries[0].claim


def test_every_row_of_the_reference_table_is_met():
    compared = released.compare()
    assert compared.agrees.all() and len(compared) == len(released.rows()) > 100
    ledger = Ledger("test")
    claims.check_receptive_fields(ledger, len(compared) - 1, len(compared), "2")
    claims.check_verifier(ledger, 1, 27, "2")
    assert [entry.verdict for entry in ledger.entries] == ["differs", "fails"]


def test_a_study_is_published_whole(made, tmp_path, monkeypatch):
    """Records of all, weights of what is shown; what is missing leaves everything as it was."""
    _, settings, records = made
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "SHIPPED", GROUPS[:2])
    monkeypatch.setattr(goldilocks, "collect", lambda study: None)
    monkeypatch.setattr(goldilocks, "members", lambda study: [])
    names = publish.publish([settings], goldilocks.Goldilocks(), [])
    assert len(names) == 3 and len(list((tmp_path / "weights/prototypes").rglob("3.safetensors"))) == 2
    assert artifacts.verify_tree(tmp_path) == ([], 2 + 3 + 1)
    assert collect(settings.override({"out": ""})) == records
    with pytest.raises(ArtifactError, match="no results of"):
        publish.publish([settings.override({"seeds": 2})], goldilocks.Goldilocks(), [])
    for fewer in ([settings.override({"groups": GROUPS[:2]})], []):
        with pytest.raises(ArtifactError, match="would be lost"):
            publish.publish(fewer, goldilocks.Goldilocks(), [])
    assert collect(settings.override({"out": ""})) == records
