"""The study of prototypes' evaluation: what is measured, kept, read and refused, its tables, figures and claims."""

import json

import numpy as np
import pandas as pd
import pytest
from proto_small import check_prose_calls

from helpers import artifacts, config
from helpers.artifacts import ArtifactError
from helpers.config import ConfigError
from helpers.data.toybirds import ToyBirdsSettings
from helpers.ledger import Ledger
from helpers.prototypes import goldilocks, publish
from helpers.prototypes import study as networks
from helpers.prototypes.evaluation import claims, explore, figures, measures, study, tables
from helpers.prototypes.evaluation.examples import given_back
from helpers.prototypes.evaluation.presets import EvaluationStudy
from helpers.prototypes.examples import show
from helpers.prototypes.sets import sets

OURS, DEEP = "birdnet@stem/pixpnet", "birdnet@stage1/protopnet"


def small(out="", **changes):
    """Birds of 32 pixels, and nets that know little after one epoch."""
    return EvaluationStudy().override(
        {
            **EvaluationStudy.presets["quick"], "preset": "quick", "out": str(out), "seed": 3,
            "groups": ("birdnet@stem", "birdnet@stage1/protopnet", "birdnet@stem/classifier"), "dataset.size": 32,
            "dataset.n_train": 40, "dataset.n_test": 40, "model.num_prototypes": 40, "model.prototype_dim": 8,
            "train.epochs": 1, "train.readout_push_epochs": 1, "evaluation.points": 5, **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, settings that read it, records) of a study whose networks were trained on the way."""
    out = tmp_path_factory.mktemp("evaluation")
    records = study.collect(small(out, retrain=True))
    return out, small(out), records


@pytest.fixture(scope="module")
def frame(made):
    return study.frame(made[2])


def test_every_network_with_prototypes_has_a_record_beside_its_own(made):
    out, settings, records = made
    names = [record["name"] for record in records]
    assert names == ["evaluation/toybirds/birdnet@stem/pixpnet/3", "evaluation/toybirds/birdnet@stage1/protopnet/3"]
    assert all((out / "results" / f"{name}.json").exists() for name in names)
    assert len(networks.collect(settings.override({"groups": settings.groups[:2]}))) == 2, "of the networks themselves"


def test_what_was_measured_is_read(made, monkeypatch):
    out, settings, records = made
    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("measured again"))
    assert study.collect(settings) == records == study.collect(small(out, retrain=True))
    assert json.loads(json.dumps(records)) == records


def test_records_of_other_settings_are_refused(made):
    out, _, _ = made
    with pytest.raises(ArtifactError, match="measured in another way"):
        study.collect(small(out, **{"evaluation.images": 5}))
    with pytest.raises(ArtifactError, match="other training settings"):
        study.collect(small(out, **{"optimizer.lr": 0.5}))
    with pytest.raises(ConfigError, match="pixpnet-exact"):
        small(out, **{"evaluation.protocols": ("pixpnet-exakt",)})


def test_measuring_anew_gives_the_same_numbers(made):
    out, _, records = made
    again = study.collect(small(out, reevaluate=True, groups=("birdnet@stem",)))
    assert again[0]["measured"]["metric"] == records[0]["measured"]["metric"]
    assert again[0]["measured"]["value"] == pytest.approx(records[0]["measured"]["value"], rel=1e-3, abs=1e-3)


def test_all_that_was_asked_for_is_there(frame):
    asked = small().evaluation
    assert set(frame.aspect) == {"consistency", "ordering", "truth"} and set(frame.group) == {OURS, DEEP}
    known = {aspect: set(own.variant) for aspect, own in frame.groupby("aspect")}
    assert known["consistency"] == set(measures.protocols(small()))
    assert set(asked.mappings) <= known["ordering"] and "rf - upsample" in known["ordering"]
    assert {*asked.mappings, "box", "center", ""} == known["truth"]
    shares = frame[frame.metric.isin([*tables.CONSISTENCY, "purity_centre"])]
    assert len(shares) and shares.value.between(-1e-9, 100 + 1e-9).all()
    assert (frame.low.fillna(-1e9) <= frame.high.fillna(1e9) + 1e-9).all()


def test_a_card_has_a_row_for_each_prototype(made):
    cards = study.cards(made[2])
    own = cards[cards.group == OURS]
    assert own.prototype.tolist() == list(range(40)) and set(explore.CARD) <= set(own)
    assert own.consistency.dropna().between(0, 100).all() and own["class"].nunique() == 20


def test_without_truth_and_annotations_the_rest_is_measured(made):
    _, settings, _ = made
    member = study.members(settings)[0]
    data = sets(settings.dataset, 3)
    object.__setattr__(data.test.stored, "parts", None)
    photographs = settings.override({"dataset.name": "CUB200224"})
    found = measures.measure(study.choose_shelf(settings).net(member), data, photographs, 3)
    assert {row["aspect"] for row in found.rows} == {"ordering"} and len(found.card) == 40


# -------------------------------------------------------------------------------------------- tables and figures


def test_tables_have_a_row_a_group_and_variant(frame):
    assert list(tables.consistency(frame).columns) == list(tables.CONSISTENCY.values())
    assert set(tables.ordering(frame).index.get_level_values("mapping")) == set(small().evaluation.mappings)
    assert (OURS, "prp") in tables.truth(frame).index and OURS in tables.distinct(frame).index
    assert list(tables.distinct(frame).columns) == list(tables.DISTINCT.values())


def test_birds_know_no_legacy_geometry(frame):
    own = tables.consistency(frame).loc[OURS]
    for metric in ("consistency, %", "consistent prototypes, %"):
        assert own.at["pixpnet-exact", metric] == own.at["pixpnet-legacy", metric]


def test_intervals_stand_beside_the_means_from_the_lowest_end_to_the_highest():
    """Of all seeds."""
    found = pd.concat([rows("ordering", "rf", "area", (50.0, 41.25, 60.0), (52.0, 45.0, 61.04)),
                       rows("truth", "box", "causal_centre", (3.0, -1.0, 4.0), (4.0, 2.0, 5.0))])  # fmt: skip
    assert tables.ordering(found).loc[(OURS, "rf")].to_dict() == {
        "area, %": "51.0 ± 1.4", "area, %: 95 %": "41.2 to 61.0",
    }  # fmt: skip
    assert tables.truth(found, ends=True).loc[(OURS, "box"), "causal purity, %"] == "-1.00 to 5.00"
    assert tables.truth(found).loc[(OURS, "box"), "causal purity, %"] == "3.50 ± 0.71"


def test_figures_show_every_network(made, frame):
    curves = study.curves(made[2])
    shown = figures.curves(curves[curves.group == OURS], seen=10.0)
    assert {line.get_gid() for line in shown.axes[0].lines if line.get_gid()} == {
        f"curve:{name}" for name in small().evaluation.mappings
    }
    drawn = {line.get_gid() for line in figures.causes(frame).axes[0].lines}
    assert {"dots:box causal_centre", "dots:center causal_centre", "dots:box causal_centre_chance"} <= drawn
    for figure in (figures.areas(frame), figures.consistency(frame), figures.causes(frame),
                   figures.part_effects(frame, [OURS, DEEP])):  # fmt: skip
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert len(labels) >= 2 and figure._repr_png_()


# ------------------------------------------------------------------------------------------------------- claims


def rows(aspect, variant, metric, *found, group=OURS):
    """(value, low, high) by seed, as a frame."""
    columns = ["value", "low", "high"]
    own = pd.DataFrame([row if isinstance(row, tuple) else (row, row, row) for row in found], columns=columns)
    return own.assign(aspect=aspect, variant=variant, metric=metric, group=group, seed=range(len(found)))


def verdict(check, *frames, **settings):
    ledger = Ledger("prototypes")
    check(ledger, pd.concat(frames, ignore_index=True), **settings, where="1")
    return {entry.key: entry.verdict for entry in ledger.entries}


def test_a_better_order_needs_an_interval_above_zero_in_every_network():
    good, bad = (5.0, 1.0, 9.0), (5.0, -1.0, 9.0)
    found = verdict(claims.check_ordering, rows("ordering", "rf - upsample", "area", good, good, good),
                    rows("ordering", "rf - prp", "area", good, good, bad),
                    rows("ordering", "rf - random", "area", good, good))  # fmt: skip
    verdicts = {"upsample": "reproduced", "prp": "differs", "random": "not verified"}
    assert found == {f"rot-{other}-ToyBirds": said for other, said in verdicts.items()}


def test_constrained_cuts_are_compared_seed_by_seed():
    def of(metric, group, *values):
        return rows("consistency", "pixpnet-exact", metric, *values, group=group)

    frames = [of("soft_consistency", OURS, 90.0, 80.0, 90.0), of("soft_consistency", DEEP, 80.0, 79.0, 80.0),
              of("soft_stability", OURS, 90.0, 80.0, 90.0), of("soft_stability", DEEP, 80.0, 81.0, 80.0)]  # fmt: skip
    found = verdict(claims.check_constrained, *frames, ours=OURS, others={"ProtoPNet": DEEP})
    assert list(found.values()) == ["reproduced", "differs"]
    assert list(found) == ["consistent-birdnet@stage1-protopnet", "stable-birdnet@stage1-protopnet"]
    fewer = [own[own.seed < 2] for own in frames]
    assert set(verdict(claims.check_constrained, *fewer, ours=OURS, others={"ProtoPNet": DEEP}).values()) == {
        "not verified"
    }


def test_the_middle_of_the_image_is_the_control():
    def of(variant, *values):
        return rows("consistency", variant, "soft_consistency", *values)

    exact, center = of("pixpnet-exact", 90, 91, 92), of("pixpnet-exact, center", 80, 90, 93)
    assert verdict(claims.check_beyond_center, exact, center, group=OURS) == {"beyond-center": "fails"}
    assert verdict(claims.check_beyond_center, exact, group=OURS) == {"beyond-center": "not verified"}
    above = of("pixpnet-exact", (94, 93.5, 95), (94, 93.5, 95), (93, 92.6, 95))
    overlapping = of("pixpnet-exact", (94, 93.5, 95), (94, 93.5, 95), (93, 92.4, 95))
    center = of("pixpnet-exact, center", *[(92, 91, 92.5)] * 3)
    assert verdict(claims.check_beyond_center, above, center, group=OURS) == {"beyond-center": "holds"}
    assert verdict(claims.check_beyond_center, overlapping, center, group=OURS) == {"beyond-center": "fails"}


def test_causes_have_to_lie_above_chance_and_the_middle_of_the_image():
    def of(metric, *values, variant="box"):
        return rows("truth", variant, metric, *values)

    def said(*frames):
        return verdict(claims.check_causes, *frames, group=OURS)["causal"]

    caused = of("causal_centre", *[(40.0, 35.0, 45.0)] * 3)
    chance = of("causal_centre_chance", *[(3.0, 1.0, 5.0)] * 3)
    middle = of("causal_centre", *[(13.0, 9.0, 18.0)] * 3, variant="center")
    assert verdict(claims.check_causes, caused, chance, middle, group=OURS) == {
        "causal": "holds", "causal-mostly": "fails",
    }  # fmt: skip
    assert said(caused, of("causal_centre_chance", *[(3.0, 1.0, 36.0)] * 3), middle) == "fails"
    one_is_no_better = [(13.0, 9.0, 18.0), (13.0, 9.0, 18.0), (41.0, 36.0, 46.0)]
    assert said(caused, chance, of("causal_centre", *one_is_no_better, variant="center")) == "fails"
    assert said(caused, chance) == "not verified"


def test_maps_peak_nearer_and_prototypes_differ():
    found = {"rf": (10, 10, 10), "upsample": (12, 10.5, 11)}
    peaks = [rows("truth", name, "peak_error", *errors) for name, errors in found.items()]
    assert verdict(claims.check_mapping_error, *peaks) == {"peak-error": "reproduced"}
    two = [frame[frame.seed < 2] for frame in peaks]
    assert verdict(claims.check_mapping_error, *two) == {"peak-error": "not verified"}, "two seeds decide nothing"
    parts = rows("truth", "", "class_parts", 3.1, 3.0, 2.9)
    assert verdict(claims.check_distinct, parts, each=5, group=OURS) == {"distinct": "differs"}
    assert verdict(claims.check_distinct, parts, each=4, group=OURS) == {"distinct": "reproduced"}


def test_pixels_are_given_back_by_every_mapping(made):
    _, settings, _ = made
    member = study.members(settings)[0]
    shown = show(settings, study.choose_shelf(settings).net(member))
    found = given_back(shown, 0, 1, ["rf", "random"], [0, 25, 100])
    for pictures in found.values():
        (none, _), (some, _), (whole, similarity) = pictures
        assert np.abs(whole - shown.picture(0)).max() < 1e-5
        assert similarity == pytest.approx(found["rf"][2][1]), "of the whole bird"
        assert (some == none).all(2).mean() == pytest.approx(0.75, abs=0.01)
    assert figures.given_back(found, [0, 25, 100])._repr_png_()


def test_without_a_truth_its_tables_are_empty(made):
    """Of photographs, nobody knows which part is the cause."""
    frame = study.frame(made[2])
    photographs = frame[frame.aspect != "truth"]
    for table in (tables.truth(photographs), tables.truth(photographs, ends=True), tables.distinct(photographs)):
        assert table.empty and isinstance(table._repr_html_(), str)


# ------------------------------------------------------------------------------------------------------ explorer


def test_records_are_published_with_their_networks(made, tmp_path, monkeypatch):
    """What is shipped is read where it is shipped; where the evaluation is missing, all stays as it was."""
    _, settings, records = made
    settings = settings.override({"groups": settings.groups[:2]})  # both have prototypes
    monkeypatch.setattr(config, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "SHIPPED", settings.groups[:1])
    monkeypatch.setattr(goldilocks, "collect", lambda study: None)
    monkeypatch.setattr(goldilocks, "members", lambda study: [])
    names = publish.publish([settings], goldilocks.Goldilocks(), [settings])
    assert names[2:] == [f"evaluation/{name}" for name in names[:2]] == [record["name"] for record in records]
    here = settings.override({"out": ""})
    assert study.collect(here) == records and artifacts.verify_tree(tmp_path) == ([], 1 + 4 + 1)
    with pytest.raises(ArtifactError, match="measured in another way"):
        publish.publish([settings], goldilocks.Goldilocks(), [settings.override({"evaluation.images": 5})])
    assert study.collect(here) == records


@pytest.fixture(scope="module")
def explorer(made):
    _, settings, records = made
    shelf, wanted = study.choose_shelf(settings), study.members(settings)
    nets = {member.of.group: shelf.net(member) for member in wanted}
    cards = {member.of.group: pd.DataFrame(record["card"]) for member, record in zip(wanted, records, strict=True)}
    return explore.Explorer(nets, ToyBirdsSettings(size=32), cards)


def test_the_slider_gives_pixels_back_until_the_bird_is_whole(explorer):
    explorer.select(image=4, place=1, mapping="rf", percent=100.0)
    whole = explorer.given_back("rf", 100.0)
    assert (whole - explorer.lab.pixels(4, None)).abs().max() < 1e-5
    none, some = explorer.given_back("rf", 0.0), explorer.given_back("rf", 20.0)
    assert (some == none).all(0).float().mean() == pytest.approx(0.8, abs=0.01)
    for found in explorer.trial.similarities.values():
        assert len(found) == len(explore.PERCENTS)
        assert found[-1] == pytest.approx(explorer.trial.similarities["rf"][-1]), "the same bird in the end"
        assert found[0] == pytest.approx(explorer.trial.similarities["rf"][0]), "and the same noise before"


def test_controls_and_code_do_the_same(explorer):
    explorer.select(net="birdnet@stem", image=0, place=0, mapping="rf", percent=10.0)
    explorer.mapping.value = "upsample"
    explorer.percent.value = 20.0
    assert (explorer.state.mapping, explorer.state.percent) == ("upsample", 20.0)
    assert "similarity" in explorer.panels["given"].note.value and "svg" in explorer.curve.value
    explorer.select(percent=21.0)
    assert explorer.state.percent == 20.0 == explorer.percent.value, "the nearest that there is"
    explorer.select(net="birdnet@stage1/protopnet", image=3, place=1)
    assert explorer.place.value == 1 and f"prototype {explorer.prototypes[1]}" in explorer.card.value


def test_the_card_names_all_prototypes_of_the_class(explorer):
    explorer.select(image=2, place=0)
    assert all(f"prototype {p}" in explorer.card.value for p in explorer.prototypes)
    cards, explorer.cards = explorer.cards, {}
    try:
        explorer.refresh()
        assert explorer.card.value == ""
    finally:
        explorer.cards = cards
        explorer.refresh()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"net": "stem"}, "there is no net 'stem'"), ({"image": 10**6}, "there is no image 1000000: they are 0 to"),
        ({"place": 2}, "there is no place 2: they are 0 to 1"), ({"mapping": "legacy"}, "no mapping 'legacy'"),
        ({"percent": 101.0}, "percent"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be_are_refused(explorer, changes, message):
    before = explorer.state
    with pytest.raises(ConfigError, match=message):
        explorer.select(**changes)
    assert explorer.state == before


def test_what_the_notebook_tells_to_call_works(explorer):
    check_prose_calls(explorer, "06_prototype_evaluation")


def test_the_slider_answers_when_it_is_let_go(explorer):
    assert not explorer.percent.continuous_update


def test_the_static_picture_is_a_png(explorer):
    assert explorer.static().startswith(b"\x89PNG")
