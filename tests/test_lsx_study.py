"""The self-explaining study makes what is missing, reads what is there and refuses what is stale; its claims are judged
by their rules; its tables and figures show what the records say."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from lsx_small import small
from lsx_small import study as tiny

from helpers import artifacts, config, figures
from helpers.config import ConfigError
from helpers.ledger import Ledger
from helpers.self_explaining import claims, evaluate, examples, fits, publish, study, tables
from helpers.self_explaining import figures as pictures
from helpers.self_explaining.presets import CONDITIONS, KINDS, PUBLISHED, SelfExplainingStudy
from helpers.self_explaining.study import Member, Shelf, collect, frame, members

GROUPS = ("clean/cnn", "clean/lsx", "decoy/cnn", "decoy/lsx")
SMALL = {"groups": GROUPS, "critics": 1, "evaluated_images": 20, "seeds": 2, "n_epochs": 1, "n_finetuning_epochs": 1}


@pytest.fixture(scope="module", autouse=True)
def small_net():
    with small():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, small_net):
    """(settings that read it, the working folder, the records) of a study of seconds."""
    out = tmp_path_factory.mktemp("lsx")
    settings = tiny(**SMALL, out=str(out))
    return settings, out, collect(settings.override({"retrain": True}))


def edited(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.fixture
def record_file(made):
    """A record that may be damaged."""
    settings, out, _ = made
    path = Shelf(out).record_path(Member(settings, "clean/cnn", settings.first_seed))
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


# --------------------------------------------------------------------------------------------------- the members


def test_the_published_groups_are_groups():
    assert len(members(SelfExplainingStudy())) == 5 * len(PUBLISHED)
    with pytest.raises(ConfigError, match="unknown group 'clean/lsxx': did you mean clean/lsx"):
        Member(SelfExplainingStudy(), "clean/lsxx", 0)


def test_every_kind_of_a_condition_has_the_data_and_length_that_it_should():
    settings = tiny(explanation_norm="sample")
    fit = {
        (condition, kind): Member(settings, f"{condition}/{kind}", 30).fit for condition in CONDITIONS for kind in KINDS
    }
    assert fit["decoy-unconf", "cnn"].settings.dataset == "decoydigits-unconf-baseline"
    assert fit["decoy-unconf", "lsx"].settings.dataset == "decoydigits-unconf"
    assert fit["color", "cnn"].settings.dataset == fit["color", "lsx"].settings.dataset == "colordigits"
    assert fit["clean", "cnn"].phases == ("pretrain",)
    assert fit["clean", "cnn"].settings.n_pretraining_epochs == 6, "as many epochs as the others' three phases"
    assert fit["clean", "lsx-batch"].settings.explanation_norm == "batch"
    assert fit["clean", "no-feedback"].settings.explanation_loss_weight == 0
    assert fit["clean", "permuted"].settings.rand_critic
    assert len({one.digest() for one in fit.values()}) == len(fit)


def test_both_kinds_share_an_encoder_that_met_no_clean_images():
    encoders = {Member(tiny(), f"{c}/{kind}", 30).encoder for c in ("decoy", "decoy-unconf") for kind in ("cnn", "lsx")}
    assert len(encoders) == 1 and encoders.pop().settings.dataset == "decoydigits"


def test_a_source_without_a_confounder_is_refused_by_name():
    with pytest.raises(ConfigError, match="dataset"):
        _ = Member(tiny(dataset="chestmnist"), "decoy/lsx", 30).fit


# ------------------------------------------------------------------------------------------------ made, read, refused


def test_what_was_made_is_read_and_not_made_again(made, monkeypatch):
    settings, _, records = made
    monkeypatch.setattr(study, "run", lambda member: pytest.fail("made again"))
    assert collect(settings) == records == collect(settings.override({"retrain": True}))
    assert [record["name"] for record in records] == [member.name for member in members(settings)]


def test_a_study_that_was_cut_off_goes_on(made):
    settings, out, records = made
    path = Shelf(out).record_path(members(settings)[1])
    path.unlink()
    with pytest.raises(artifacts.ArtifactError, match=r"no results of digits/clean/lsx/30 are in .*RETRAIN=True"):
        collect(settings)
    assert collect(settings.override({"retrain": True})) == records, "to the bit"


def test_a_record_says_what_the_weights_are_and_do(made):
    settings, out, records = made
    member = members(settings)[0]
    record, shelf = records[0], Shelf(out)
    data = evaluate.accuracy, study.sets(member.fit.settings, member.seed)
    rows = frame([record])
    accuracy = rows[rows.metric == "accuracy"].value
    assert accuracy.nunique() == 1
    assert accuracy.iloc[0] == pytest.approx(data[0](shelf.net(member), data[1].test_x, data[1].test_y))
    assert record["computed_from"]["weights"] == artifacts.sha256(shelf.weights_path(member))
    state, _ = artifacts.load_tensors(shelf.weights_path(member))
    assert state["fc1.weight"].dtype == torch.float16, "what is shipped is what was measured"
    assert record["training"]["history"]["phase"] == ["pretrain"] * 4
    assert set(record["curves"]) == {"batch", "sample"}
    assert all(len(curve) == settings.n_critic_batches for curve in record["curves"].values())


def test_where_there_is_a_confounder_less_is_measured(made):
    _, _, records = made
    table = frame(records)
    clean, decoy = (table[table.condition == name] for name in ("clean", "decoy"))
    assert {*zip(clean.norm, clean.label, strict=True)} == {
        (norm, label) for norm in ("batch", "sample") for label in ("true", "predicted")
    }
    assert {*zip(decoy.norm, decoy.label, strict=True)} == {("sample", "true")}
    assert "decoy_mass" in set(decoy.metric) and "decoy_mass" not in set(clean.metric)


def test_measuring_again_gives_the_same_record(made):
    settings, out, records = made
    assert collect(settings.override({"reevaluate": True})) == records


def test_a_change_of_the_measurement_or_the_training_is_refused_with_its_remedy(made):
    settings, _, _ = made
    with pytest.raises(artifacts.ArtifactError, match="measured in another way.*REEVALUATE=True"):
        collect(settings.override({"critics": 2}))
    with pytest.raises(artifacts.ArtifactError, match="other training settings; RETRAIN=True with another OUT"):
        collect(settings.override({"learning_rate": 0.2}))


@pytest.mark.parametrize("change", [{"explanation_mode": "gradcam"}, {"explanation_target": "logit"}])
def test_a_cnn_measured_by_other_explanations_is_refused_too(made, change):
    """Its training knows nothing of them."""
    settings = made[0].override({"groups": ["clean/cnn"], **change})
    with pytest.raises(artifacts.ArtifactError, match="measured in another way.*REEVALUATE=True"):
        collect(settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(name="digits/clean/lsx/30"), "edited or swapped"),
        (lambda record: record.pop("curves"), "edited or swapped"),
        (lambda record: record["computed_from"].update(weights="0"), "of other weights; REEVALUATE=True"),
    ],
    ids=["swapped", "incomplete", "other weights"],
)
def test_a_damaged_record_is_refused(made, record_file, change, message):
    edited(record_file, change)
    with pytest.raises(artifacts.ArtifactError, match=message):
        collect(made[0])


def test_a_truncated_record_is_refused(made, record_file):
    record_file.write_bytes(record_file.read_bytes()[:100])
    with pytest.raises(artifacts.ArtifactError, match="damaged"):
        collect(made[0])


# -------------------------------------------------------------------------------------------------------- shipped


@pytest.fixture
def shipped(made, tmp_path, monkeypatch):
    """(settings, names) of the study published into a repository of its own."""
    settings, out, _ = made
    monkeypatch.setattr(config, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    names = publish.publish(settings)
    return settings.override({"out": ""}), names


def test_what_is_published_is_read_and_vouched_for(made, shipped, tmp_path):
    settings, names = shipped
    assert collect(settings) == made[2] and names == [record["name"] for record in made[2]]
    weights = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.safetensors"))
    assert weights == [f"weights/self_explaining/digits/{group}/30.safetensors" for group in sorted(GROUPS)]
    assert artifacts.verify_tree(tmp_path)[0] == []
    assert (tmp_path / "results/self_explaining/key_figure.png").stat().st_size > 10_000


def test_an_edited_file_of_the_shipped_is_refused(shipped):
    settings, _ = shipped
    path = Shelf().results / "digits/clean/cnn/30.json"
    path.write_text(path.read_text().replace("0.", "1.", 1))
    with pytest.raises(artifacts.ArtifactError, match="sha256"):
        collect(settings)


def test_reevaluation_keeps_the_records_whose_weights_are_not_shipped(made, shipped, tmp_path, caplog):
    settings, _ = shipped
    again = collect(settings.override({"reevaluate": True, "out": str(tmp_path / "new")}))
    assert "4 records were kept" in caplog.text
    for record, before in zip(again, made[2], strict=True):
        assert record["computed_from"] == before["computed_from"]
        pd.testing.assert_frame_equal(frame([record]), frame([before]), rtol=1e-4)


def test_the_training_of_shipped_weights_is_not_that_of_another_run(shipped, tmp_path):
    """Such as one that was cut off in the same OUT."""
    settings, _ = shipped
    out = tmp_path / "new"
    again = settings.override({"reevaluate": True, "out": str(out), "critics": 2, "seeds": 1})
    shelf = Shelf()
    for member in members(again):
        folder = fits.run_folder(out / "fits", member.fit)
        folder.mkdir(parents=True)
        (folder / "log.csv").write_text("phase,epoch\n")
    known = [artifacts.load_json(shelf.record_path(member))["training"] for member in members(again)]
    assert [record["training"] for record in collect(again)] == known


def test_reevaluation_in_another_way_asks_for_the_weights_that_are_not_shipped(shipped, tmp_path):
    settings, _ = shipped
    again = settings.override({"reevaluate": True, "out": str(tmp_path / "new"), "critics": 2})
    with pytest.raises(artifacts.ArtifactError, match=r"the weights of digits/clean/cnn/31 are not in .*RETRAIN=True"):
        collect(again)
    assert len(collect(again.override({"seeds": 1}))) == 4


def test_what_is_missing_is_not_published(made, record_file, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    record_file.unlink()
    with pytest.raises(artifacts.ArtifactError, match="no results of digits/clean/cnn/30"):
        publish.publish(made[0])
    assert not (tmp_path / "weights").exists()


# ------------------------------------------------------------------------------------------------------- examples


def test_the_nets_at_hand_are_those_whose_weights_are_there(made):
    settings, out, _ = made
    found = examples.nets(settings)
    assert {condition: list(kinds) for condition, kinds in found.items()} == {
        "clean": ["cnn", "lsx"], "decoy": ["cnn", "lsx"],
    }  # fmt: skip
    with pytest.raises(artifacts.ArtifactError, match="no weights of these settings"):
        examples.nets(settings, Shelf(out / "nowhere"))


def test_to_show_the_nets_measures_nothing_anew_and_makes_what_is_missing(made, record_file, monkeypatch):
    settings, out, records = made
    everything, measured = settings.override({"retrain": True, "reevaluate": True}), []
    monkeypatch.setattr(study, "measure", lambda member, _: measured.append(member.name) or records[0])
    examples.nets(everything)
    assert not measured

    path = Shelf(out).weights_path(members(settings)[0])
    path.unlink()
    record_file.unlink()
    assert "cnn" in examples.nets(everything)["clean"]
    assert measured == [members(settings)[0].name] and path.exists()


def test_of_mnist_scikit_learns_digits_are_shown_and_of_others_their_own():
    shown = examples.demonstration(tiny(dataset="mnist", few_shot_train_percent=0.02, groups=("clean/lsx-batch",)))
    assert (shown.dataset, shown.few_shot_train_percent, shown.seeds) == ("digits", 1.0, 1)
    assert set(shown.groups) == set(GROUPS)
    images = examples.shown_images(tiny(dataset="mnist"))
    assert len(images) == 500 and images.x.shape[2:] == (28, 28)
    assert len(examples.shown_sets(tiny(dataset="mnist")).y) == 1297
    assert examples.demonstration(tiny()) == tiny()


def test_the_first_of_each_class_come_first():
    y = torch.tensor([1, 1, 0, 2, 0, 1])
    assert examples.first_of_each_class(y, 5).tolist() == [2, 0, 3, 4, 1]


# --------------------------------------------------------------------------------------------------------- claims


def judged(values, kinds=("lsx", "cnn"), metric="accuracy", condition="clean", norm="sample", seeds=None):
    """A frame in which each kind has these values, one a seed."""
    rows = [
        {"source": "mnist", "condition": condition, "kind": kind, "seed": seed, "metric": metric, "percent": None,
         "norm": norm, "label": "true", "value": value}
        for kind, of_kind in zip(kinds, values, strict=True)
        for seed, value in enumerate(of_kind)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def verdicts(check, table):
    ledger = Ledger("self_explaining")
    check(ledger, table, where="here")
    return {entry.key: entry.verdict for entry in ledger.entries}


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([1.0, 1.0, 1.0, 1.0, -0.5], "reproduced"),
        ([4.0, 4.0, 4.0, -0.1, -0.1], "differs"),  # two seeds disagree
        ([0.4] * 5, "differs"),  # less than half a point
        ([1.0] * 4, "not verified"),  # too few seeds
    ],
)
def test_a_gain_needs_its_size_and_four_seeds_in_five(gains, verdict):
    table = judged([[80 + gain for gain in gains], [80] * len(gains)])
    assert verdicts(claims.check_accuracy, table)["gain"] == verdict


def test_what_is_better_lower_is_judged_so():
    better, worse = [0.3] * 5, [0.5] * 5
    table = judged([better, worse], metric="iies")
    assert verdicts(claims.check_consolidation, table)["iies-sample-true"] == "reproduced"
    table = judged([worse, better], metric="iies")
    assert verdicts(claims.check_consolidation, table)["iies-sample-true"] == "differs"
    assert verdicts(claims.check_consolidation, table)["iies-batch-true"] == "not verified"


@pytest.mark.parametrize("how", ["value", "area", "rank"])
def test_comprehensive_is_higher_and_sufficient_lower(how):
    for metric, best in (("comprehensiveness", 0.9), ("sufficiency", 0.1)):
        for ours, verdict in ((best, "reproduced"), (1 - best, "differs")):
            found = verdicts(claims.check_faithfulness, judged([[ours] * 5, [0.5] * 5], metric=f"{metric}_{how}"))
            assert found.pop(f"{metric}-{how}") == verdict and set(found.values()) == {"not verified"}


@pytest.mark.parametrize("condition", ["decoy", "color", "decoy-unconf", "color-unconf"])
def test_a_shortcut_is_seen_through_by_five_points_unless_clean_images_help(condition):
    enough = "reproduced" if "unconf" in condition else "differs"
    for gain, verdict in ((6, "reproduced"), (4, enough), (-1, "differs")):
        found = verdicts(claims.check_shortcuts, judged([[80 + gain] * 5, [80] * 5], condition=condition))
        assert found.pop(f"shortcut-{condition}") == verdict and set(found.values()) == {"not verified"}


def test_less_of_an_explanation_on_the_decoy_is_better():
    for condition in ("decoy", "decoy-unconf"):
        for ours, verdict in ((0.01, "reproduced"), (0.2, "differs")):
            table = judged([[ours] * 5, [0.1] * 5], metric="decoy_mass", condition=condition)
            assert verdicts(claims.check_shortcuts, table)[f"mass-{condition}"] == verdict


@pytest.mark.parametrize(("check", "key", "metric", "better", "worse"), [
    (claims.check_accuracy, "gain-control", "accuracy", 81, 80),
    (claims.check_critics, "critic-control", "critic_loss", 1.5, 1.6),
])  # fmt: skip
def test_the_control_is_the_kind_without_feedback(check, key, metric, better, worse):
    for ours, other, verdict in ((better, worse, "holds"), (worse, better, "fails")):
        assert verdicts(check, judged([[ours] * 5, [other] * 5], ("lsx", "no-feedback"), metric))[key] == verdict


def test_critics_that_guess_are_told_from_those_that_learn():
    chance = float(np.log(10))
    table = judged([[chance] * 5, [chance + 0.01] * 5], metric="critic_loss", norm="batch")
    assert verdicts(claims.check_critics, table)["critic-batch"] == "holds"
    table = judged([[chance - 0.1] * 5, [chance] * 5], metric="critic_loss", norm="batch")
    assert verdicts(claims.check_critics, table)["critic-batch"] == "fails"
    table = judged([[1.5] * 5, [1.51] * 5], metric="critic_loss")
    assert verdicts(claims.check_critics, table)["critic"] == "fails", "less than counts"


def test_numbers_known_by_hearsay_decide_nothing(made):
    table = judged([[91.59] * 5, [89.83] * 5])
    found = verdicts(claims.check_accuracy, table)
    assert {found[f"accuracy-{group}"] for group in claims.released.ACCURACY} == {"not verified"}


def test_accuracies_on_other_images_are_not_compared_with_the_release():
    ledger, table = Ledger("self_explaining"), judged([[91.59] * 5, [89.83] * 5])
    few = claims.trained_on(tiny(dataset="decoymnist", few_shot_train_percent=0.05))
    claims.check_accuracy(ledger, table, where="here", few=few)
    entries = {entry.key: entry for entry in ledger.entries}
    assert few == "5 % of mnist" and "5 % of mnist" in entries["gain"].claim
    assert entries["accuracy-clean/cnn"].reference is None and entries["accuracy-clean/cnn"].ours == 89.83
    assert claims.trained_on(tiny(dataset="decoymnist", few_shot_train_percent=0.02)) == "1,200 digits"


def test_chance_is_that_of_the_classes_there_are():
    ledger, chance = Ledger("self_explaining"), [np.log(2)] * 5
    table = judged([chance, chance], metric="critic_loss", norm="batch")
    claims.check_critics(ledger, table, where="here", n_classes=2)
    (found,) = [entry for entry in ledger.entries if entry.key == "critic-batch"]
    assert found.verdict == "holds" and "ln 2" in found.rule


def test_every_claim_can_be_entered_of_a_small_study(made):
    ledger, table = Ledger("self_explaining"), frame(made[2])
    for check in (claims.check_critics, claims.check_accuracy, claims.check_shortcuts, claims.check_consolidation,
                  claims.check_faithfulness):  # fmt: skip
        check(ledger, table, where="here")
    claims.check_gradients(ledger, 1e-3, where="here")
    assert {entry.verdict for entry in ledger.entries[:-1]} == {"not verified"}, "two seeds decide nothing"
    assert ledger.entries[-1].verdict == "fails"


# --------------------------------------------------------------------------------------------- tables and figures


def test_without_a_clean_condition_there_are_no_phases(made):
    assert tables.phases(record for record in made[2] if "/decoy/" in record["name"]).empty


def test_tables_hold_means_and_deviations(made):
    table = frame(made[2])
    accuracy = tables.accuracy(table)
    assert list(accuracy.index) == ["clean", "decoy"]
    own = tables.values(table, "accuracy")
    found = own[(own.condition == "decoy") & (own.kind == "lsx")].value
    gains = tables.differences(table, "accuracy", "lsx", "cnn", condition="decoy")
    shown = [accuracy.loc["decoy", column].split(" ± ") for column in ("CNN-LSX", "CNN-LSX − CNN")]
    for (mean, deviation), values in zip(shown, (found, gains), strict=True):
        assert float(mean) == pytest.approx(values.mean(), abs=0.006)
        assert float(deviation) == pytest.approx(values.std(), abs=0.006)
    both = tables.by_kind(table, tables.CONSOLIDATION, labels=evaluate.LABELS)
    assert len(both) == 8 and list(both.columns) == ["CNN", "CNN-LSX"]
    assert len(tables.by_kind(table, ("comprehensiveness_area",))) == 1, "the norm changes no order"
    assert list(tables.phases(made[2]).columns) == ["pretrain", "joint", "finetune", "minutes"]


def test_figures_show_every_seed(made):
    settings, _, records = made
    table = frame(records)
    shown = pictures.conditions(table, "accuracy")
    dots = {line.get_gid(): len(line.get_ydata()) for line in shown.axes[0].lines if line.get_gid()}
    assert dots["decoy:cnn"] == dots["clean:lsx"] == 2
    own = tables.values(table[table.kind == "lsx"], "iies", norm="sample", label="predicted")
    both = pictures.consolidation(table)
    (drawn,) = (line for ax in both.axes for line in ax.lines if line.get_gid() == "iies:sample:lsx:predicted")
    assert sorted(drawn.get_ydata()) == sorted(own.value)
    curves = pictures.critic_curves(records)
    (mean,) = (line for ax in curves.axes for line in ax.lines if line.get_gid() == "curve:sample:lsx")
    kept = [record["curves"]["sample"] for record in records if "clean/lsx/" in record["name"]]
    np.testing.assert_allclose(mean.get_ydata(), np.mean(kept, 0))
    for figure in (shown, both, curves, pictures.removal(table),
                   examples.key_figure(settings, records)):  # fmt: skip
        assert len(figures.png(figure)) > 5_000


def test_figures_of_maps():
    values = {"cnn": torch.rand(20), "lsx": torch.rand(20)}
    wrong = {kind: torch.arange(20) < 3 for kind in values}
    crosses = [
        line for line in pictures.magnitudes(values, values, wrong).axes[0].lines if line.get_gid() == "cnn:wrong"
    ]
    assert len(crosses[0].get_xdata()) == 3
    figure = pictures.maps_in_a_batch(torch.rand(4, 28, 28), {"batch": torch.rand(4, 28, 28)})
    assert len(figure.axes) == 8


def test_an_encoder_is_trained_where_it_is_missing(made, monkeypatch):
    settings, out, records = made
    encoder = members(settings)[0].encoder
    fits.weights_path(out / "fits", encoder).unlink()
    assert study.measure(members(settings)[0], Shelf(out)) == records[0]


def test_confounded_groups_are_measured_of_true_labels_and_scaled_samples_whatever_the_order():
    for labels, norms in ((("true", "predicted"), ("batch", "sample")), (("predicted", "true"), ("sample", "batch"))):
        asked = SelfExplainingStudy(evaluated_labels=labels, evaluated_norms=norms)
        found = Member(asked, "decoy/lsx", 30).asked
        assert (found["labels"], found["norms"]) == (("true",), ("sample",))
    only = SelfExplainingStudy(evaluated_labels=("predicted",), evaluated_norms=("batch",))
    assert Member(only, "decoy/lsx", 30).asked["labels"] == ("predicted",)
    assert Member(only, "decoy/lsx", 30).asked["norms"] == ("batch",)
