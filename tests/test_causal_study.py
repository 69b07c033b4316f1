"""The causal graphs study makes what is missing, reads what is there, and refuses what is stale; its claims are judged
by their rules."""

import json

import pandas as pd
import pytest
import torch
from safetensors import safe_open

from helpers import artifacts, config
from helpers.causal_graphs import claims, fits, parts, publish, released, study, tables
from helpers.causal_graphs.presets import CausalGraphsStudy, Training
from helpers.causal_graphs.study import Checkpoint, Shelf, checkpoints
from helpers.config import ConfigError, read_parameters
from helpers.ledger import Ledger

SMALL = {"controls": 2, "sample_grid": (5, 10), "scored_images": 2, "beta_grid": (0.0, 0.1), "stab_runs": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A working folder with one checkpoint, barely trained on the digits that need no download."""
    out = tmp_path_factory.mktemp("causal")
    with pytest.MonkeyPatch.context() as patch:
        training = Training(epochs=3, batch_size=16, learning_rate=2e-3, schedule="cosine")
        patch.setattr(fits, "recommended", lambda model, dataset: training)
        patch.setattr(parts, "BASELINES", ("gradient",))
        settings = CausalGraphsStudy().override({**CausalGraphsStudy.presets["quick"], **SMALL, "out": str(out)})
        (checkpoint,) = checkpoints(settings.override({"retrain": True, "verbose": False}))
        checkpoint.graph(3), checkpoint.graph(3, "reference")
        yield settings, out


def open_checkpoint(settings):
    return checkpoints(settings)[0]


def test_what_was_made_is_read_and_not_made_again(trained, monkeypatch):
    settings, _ = trained
    monkeypatch.setattr(fits, "train", lambda *a, **k: pytest.fail("trained again"))
    made = open_checkpoint(settings.override({"retrain": True, "verbose": False})).graph(3)
    monkeypatch.setattr(study.discover, "explain", lambda *a, **k: pytest.fail("discovered again"))
    assert open_checkpoint(settings).graph(3) == made


def test_what_is_missing_says_how_to_make_it(trained, tmp_path):
    settings, _ = trained
    (tmp_path / "results").mkdir()
    with pytest.raises(artifacts.ArtifactError, match="RETRAIN=True trains them"):
        _ = open_checkpoint(settings.override({"out": str(tmp_path)})).model
    with pytest.raises(artifacts.ArtifactError, match=r"surgery.json is not there; REEVALUATE=True"):
        parts.surgery(open_checkpoint(settings))
    with pytest.raises(ConfigError, match="TARGET_IDX and SCORED_CLASSES must be classes of 0 to 9"):
        open_checkpoint(settings).graph(10)


def test_a_part_is_kept_and_refused_when_settings_or_weights_change(trained):
    settings, out = trained
    again = settings.override({"reevaluate": True, "verbose": False})
    made = parts.randomised(open_checkpoint(again))
    pd.testing.assert_frame_equal(parts.randomised(open_checkpoint(settings)), made)
    with pytest.raises(artifacts.ArtifactError, match="with other settings; REEVALUATE=True"):
        parts.randomised(open_checkpoint(settings.override({"alpha": 0.01})))
    path = Shelf(out).part_path(open_checkpoint(settings).fit, "randomised.csv")
    path.write_text(path.read_text().replace("# weights: ", "# weights: 0"))
    with pytest.raises(artifacts.ArtifactError, match="other weights"):
        parts.randomised(open_checkpoint(settings))


def test_steps_of_a_run_change_no_part(trained):
    settings, _ = trained
    run = {"target_idx": 5, "learn_explainer": True, "mode": "reference", "checkpoints": 2, "device": "cpu"}
    assert study.settings_digest(settings) == study.settings_digest(settings.override(run))
    assert study.settings_digest(settings) != study.settings_digest(settings.override({"delta": 0.1}))


def test_a_graph_of_other_settings_or_weights_is_not_taken_for_ours(trained, monkeypatch):
    settings, _ = trained
    checkpoint = open_checkpoint(settings)
    stored = checkpoint.graph(3)
    other = Checkpoint(settings.override({"delta": 0.2}), checkpoint.shelf, 0)
    assert other.graph(3).selection["delta"] == 0.2  # discovered anew, in the working folder
    assert open_checkpoint(settings).graph(3) == stored
    monkeypatch.setattr(Shelf, "checked", lambda self, path: path)
    shipped = Shelf(checkpoint.shelf.results.parent)
    shipped.shipped = True
    with pytest.raises(artifacts.ArtifactError, match="LEARN_EXPLAINER=True"):
        Checkpoint(settings.override({"delta": 0.3}), shipped, 0).graph(3)


@pytest.mark.parametrize(
    "change", [{"n_samples": 21}, {"candidates": "screen"}, {"refine": True}, {"dtype": "float64"}], ids=str
)
def test_a_graph_of_another_search_is_not_taken_for_ours(trained, change):
    settings, _ = trained
    checkpoint = open_checkpoint(settings)
    other = Checkpoint(settings.override(change), checkpoint.shelf, 0)
    assert checkpoint.is_mine(checkpoint.graph(3), "recommended")
    assert not other.is_mine(checkpoint.graph(3), "recommended")


def test_parts_depend_on_the_seed_of_their_checkpoint_alone(trained):
    settings, _ = trained
    assert study.settings_digest(settings) == study.settings_digest(settings.override({"seed": 5}))


def test_weights_of_ones_own_are_one_seed(trained):
    settings, out = trained
    file = str(Shelf(out).weights_path(open_checkpoint(settings).fit))
    own = settings.override({"weights": file, "checkpoints": 3})
    assert len(checkpoints(own)) == 1 and len(checkpoints(own, shortcut=3)) == 3


def test_any_delta_has_its_row_in_the_pruning(trained):
    settings, _ = trained
    own = settings.override({"delta": 0.03, "reevaluate": True, "verbose": False, "controls": 1})
    table = parts.gather([open_checkpoint(own)], parts.pruned)
    rows, share = tables.published_pruning(table, 0.03)
    assert {"causal", "magnitude"} <= set(rows.method) and 0 < share < 1


def test_scored_images_are_none_that_graphs_were_found_on(trained):
    settings, _ = trained
    checkpoint = open_checkpoint(settings)
    rows = set(parts.scored_images(checkpoint, 3).tolist())
    assert len(rows) == 2
    for mode in settings.modes:
        assert not rows & set(checkpoint.graph(3, mode).sample_indices)


def test_scores_have_the_controls_and_both_kinds_of_graph(trained):
    settings, _ = trained
    small = {"reevaluate": True, "verbose": False, "scored_classes": (3,), "lipschitz.k": 2}
    table = parts.scores(open_checkpoint(settings.override(small)))
    assert {"constant_map", "random_map", "reference", "spatial_do_1x1", "gradient"} <= set(table.method)
    assert set(table.target) == {3} and table.value.notna().all()


def test_the_stability_of_a_layer_comes_back_as_it_was_kept(trained):
    settings, _ = trained
    table = parts.stability(open_checkpoint(settings.override({"reevaluate": True, "verbose": False})))
    assert set(table["mode"]) == set(settings.modes) and all(isinstance(found, tuple) for found in table.causes)
    assert tables.appearance(table.assign(seed=0), "recommended").loc[0.0, 0] > 50


@pytest.fixture(scope="module")
def larger(trained):
    """(the study, the checkpoint) where the larger network is another seed of the same small one, screened."""
    settings, _ = trained
    with pytest.MonkeyPatch.context() as patch:
        training = Training(epochs=3, batch_size=16, learning_rate=2e-3, schedule="cosine")
        patch.setattr(fits, "recommended", lambda model, dataset: training)
        small = {**CausalGraphsStudy.presets["quick"], **SMALL, "seed": 7, "candidates": "screen", "lipschitz.k": 2}
        small |= {"scored_classes": (3, 4)}
        patch.setattr(CausalGraphsStudy, "presets", {**CausalGraphsStudy.presets, "small": small})
        own = settings.override({"networks": ("small",), "retrain": True, "verbose": False})
        (checkpoint,) = parts.collect_larger(own).values()
        yield own, checkpoint


@pytest.fixture
def published(larger, tmp_path, monkeypatch):
    """The root of a repository in which the study is shipped."""
    own, _ = larger
    monkeypatch.setattr(config, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(parts, "PARTS", ())
    monkeypatch.setattr(parts, "repaired", lambda checkpoint: None)
    monkeypatch.setattr(CausalGraphsStudy, "modes", ())
    monkeypatch.setattr(publish, "checkpoints", lambda study, shortcut=None: [] if shortcut else checkpoints(study))
    assert publish.publish(own) == ["Digits/LeNet/0", "Digits/LeNet/7"]
    return tmp_path


def test_what_is_published_is_whole_and_verified(trained, published):
    problems, count = artifacts.verify_tree(published)
    assert problems == [] and count >= 4
    manifest = json.loads((published / "results/causal_graphs/manifest.json").read_text())
    assert str(trained[1]) not in json.dumps(manifest) and "key_figure.png" in manifest["files"]


def test_walks_of_a_larger_network_are_those_of_its_graphs(larger):
    _, checkpoint = larger
    walks, graphs = parts.walks(checkpoint), checkpoint.graphs("recommended")
    assert set(walks.target) == {3, 4} and (walks.dropped > 0).any()
    for target, own in walks.groupby("target"):
        counts = graphs[target].counts()
        assert own.causes.tolist() == counts[counts.tested > 0].causes.tolist()
        assert (own.tested == own.lower - own.dropped + own.retested).all() and (own.missed <= own.retested).all()
    assert walks.jaccard.between(0, 1).all() and (walks.seconds > 0).all() and (walks.clean > 0).all()
    assert set(parts.scores(checkpoint).method) >= {*parts.FEWER, "spatial_do_1x1", "constant_map"}
    assert {record["mode"] for record in parts.surgery(checkpoint)} == {"recommended"}
    table = tables.larger({"LeNet": checkpoint}, {"LeNet": walks})["LeNet, 32 px"]
    assert table["classes"] == 2 and table["nodes below (the literal loop's passes)"] == 226


def test_parts_of_a_network_too_large_to_ship_are_read_without_its_weights(larger, published):
    own, checkpoint = larger
    assert not list((published / "weights").rglob("7.safetensors"))
    (read,) = study.larger(own).values()
    pd.testing.assert_frame_equal(parts.walks(read), parts.walks(checkpoint))
    assert read.metadata["accuracy"] == checkpoint.metadata["accuracy"]
    with pytest.raises(artifacts.ArtifactError, match="RETRAIN=True trains them"):
        _ = read.model


def test_a_larger_network_is_named_by_its_preset():
    with pytest.raises(ConfigError, match="NETWORKS: no preset 'resnet19'; did you mean resnet18"):
        study.larger(CausalGraphsStudy(networks=("resnet19",)))


def test_parameters_have_the_names_of_the_releases_configuration():
    keys = """device verbose dataset_name model_name learn_explainer target_idx n_samples soft_interventions graph_stab
    gen_attr save_attr vis_attr eval_attr baseline_attr layer_name layer_name_soft seed mode effect alpha delta fdr
    intervention beta_grid stab_runs candidates engine chunk_mb dtype attribution_method output_dir weights
    data_dir""".split()
    defaults = CausalGraphsStudy()
    given = {key.upper(): getattr(defaults, key) for key in keys}
    assert read_parameters(given, CausalGraphsStudy) == defaults
    with pytest.raises(ConfigError, match="did you mean TARGET_IDX"):
        read_parameters({"TARGET_IDXX": 3}, CausalGraphsStudy)
    with pytest.raises(ConfigError, match="'contrast' needs other_idx"):
        CausalGraphsStudy().override({"effect": "contrast"})
    with pytest.raises(ConfigError, match="engine"):
        read_parameters({"ENGINE": "naive"}, CausalGraphsStudy)


# --------------------------------------------------------------------------------------------------- claims


def verdict(entry_of, *arguments):
    ledger = Ledger("test")
    entry_of(ledger, *arguments, where="1")
    return {entry.key: entry.verdict for entry in ledger.entries}


def record(seed, **changes):
    good = {"seed": seed, "cut_recall": 0.0, "random_cut_recall": [0.5, 0.9], "kept_auroc": 0.99,
            "random_kept_auroc": [0.6, 0.8], "specificity": 0.7}  # fmt: skip
    return good | changes


def test_graphs_are_judged_beside_their_controls():
    good = [record(seed) for seed in range(3)]
    assert set(verdict(claims.check_surgery, good).values()) == {"holds"}
    random_too = [record(seed, random_cut_recall=[0.0, 0.9], random_kept_auroc=[0.995]) for seed in range(3)]
    bad = verdict(claims.check_surgery, random_too)
    assert bad["necessary"] == bad["sufficient"] == "fails" and bad["specific"] == "holds"
    assert set(verdict(claims.check_surgery, good[:2]).values()) == {"not verified"}


def test_a_screen_that_misses_causes_is_reported():
    walks = pd.DataFrame({"retested": [150, 100], "missed": [1, 2]})
    assert verdict(claims.check_screen, {"net": walks}) == {"screen": "holds"}
    assert verdict(claims.check_screen, {"net": walks, "other": walks.assign(missed=9)}) == {"screen": "fails"}
    assert verdict(claims.check_screen, {"net": walks[:1]}) == {"screen": "not verified"}
    assert verdict(claims.check_screen, {}) == {"screen": "not verified"}


def test_larger_networks_are_judged_by_their_controls_too():
    good = [record(0) for _ in range(10)]
    assert verdict(claims.check_larger, {"net": good}) == {"necessary-net": "holds"}
    assert verdict(claims.check_larger, {"net": [record(0, cut_recall=0.2)] * 10}) == {"necessary-net": "fails"}
    assert verdict(claims.check_larger, {"net": good[:9]}) == {"necessary-net": "not verified"}


def test_the_table_of_surgeries_has_means_over_classes():
    whole = {"sparsity": 0.03, "recall": 1.0, "others": 0.9, "cut_others": 0.8, "auroc": 1.0}
    table = tables.surgery({"net": [record(0, **whole), record(0, **whole | {"cut_recall": 0.1})]})
    assert table.loc["net", ["edges in the graph", "recall", "recall, cut", "recall, random cut"]].tolist() == [
        3,
        100,
        5,
        70,
    ]
    assert tables.surgery({}).empty and tables.larger({}, {}).empty


def means(**values):
    rows = [
        {"seed": seed, "target": 3, "method": method, "metric": metric, "value": value}
        for seed in range(3)
        for metric, table in values.items()
        for method, value in table.items()
    ]
    return pd.DataFrame(rows)


def test_maps_have_to_beat_every_baseline():
    others = dict.fromkeys(claims.SCORED, 0.8)
    lipschitz = others | {"reference": 0.3, "spatial_do_1x1": 0.6, "constant_map": 0.0}
    irof = others | {"reference": 0.5, "spatial_do_1x1": 0.9, "constant_map": 0.4}
    found = verdict(claims.check_maps, means(lipschitz_minmax=lipschitz, irof=irof))
    assert found == {
        "stable-reference": "reproduced", "faithful-reference": "differs", "stable-spatial_do_1x1": "reproduced",
        "faithful-spatial_do_1x1": "reproduced", "control-constant": "holds", "spatial-do": "holds",
    }  # fmt: skip


def test_a_repair_counts_only_if_random_cuts_do_not_do_it():
    good = {"rule": "gain", "others": [0.99, 0.99], "marked": [0.5, 0.95], "clean": [0.99, 0.989]}
    good["random_marked"] = [0.5]
    none = {**good, "rule": "difference", "marked": [0.5, 0.6]}
    found = verdict(claims.check_repair, [good, none] * 3)
    assert found == {"repair-difference": "fails", "repair-gain": "holds"}
    lucky = {**good, "random_marked": [0.9]}
    assert verdict(claims.check_repair, [lucky, none] * 3)["repair-gain"] == "fails"
    costly = {**good, "clean": [0.99, 0.97]}
    assert verdict(claims.check_repair, [costly, none] * 3)["repair-gain"] == "fails"


def test_other_networks_and_data_are_not_judged_by_the_releases_numbers():
    ledger, few = Ledger("causal_graphs"), [0.99, 0.95]
    claims.check_accuracy(ledger, few, where="here", data="Digits")
    claims.check_counts(ledger, [], where="here")
    claims.check_sweep(ledger, tables.appearance(pd.DataFrame({"mode": [], "seed": []}), "reference"), where="here")
    assert {entry.verdict for entry in ledger.entries} == {"not verified"}
    assert ledger.entries[0].claim.startswith("LeNet classifies Digits")
    assert set(verdict(claims.check_accuracy, few).values()) == {"not verified"}, "too few seeds"
    assert set(verdict(claims.check_accuracy, [*few, 0.99]).values()) == {"fails"}
    own = CausalGraphsStudy()
    assert tables.released_sweep(own, 3)["jaccard"] is released.JACCARD
    others = {"dataset_name": "Digits", "model_name": "ResNet18", "layer_name_soft": "fc2", "effect": "margin",
              "n_samples": 50, "stab_runs": 3}  # fmt: skip
    for name, value in others.items():
        assert set(tables.released_sweep(own.override({name: value}), 3).values()) == {None}
    assert set(tables.released_sweep(own, 8).values()) == {None}


def test_the_sweep_is_compared_with_the_release():
    betas = list(released.APPEARANCE)
    same = pd.DataFrame({seed: [released.APPEARANCE[b] for b in betas] for seed in range(3)}, index=betas)
    assert set(verdict(claims.check_sweep, same).values()) == {"reproduced"}
    assert verdict(claims.check_sweep, same * 0 + 95)["appearance-0.1"] == "differs"
    assert set(verdict(claims.check_sweep, same[[0]]).values()) == {"not verified"}


def test_shipped_weights_are_small_and_say_what_they_are():
    paths = sorted((config.ROOT / "weights" / study.STUDY).rglob("*.safetensors"))
    assert paths, "no weights of this study are shipped"
    for path in paths:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["sightline"])
        assert facts["accuracy"] >= 0.988 and path.stat().st_size < 2**18
        assert isinstance(fits.load(path)[0], torch.nn.Module)
