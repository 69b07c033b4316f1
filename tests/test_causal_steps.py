"""Every key of the release's configuration does what it says, from the command line."""

import json

import pytest
import yaml

from helpers import options
from helpers.causal_graphs import fits
from helpers.causal_graphs.__main__ import OWN, main, resolve
from helpers.causal_graphs.graph import CausalGraph
from helpers.causal_graphs.heatmaps import HeatMaps
from helpers.causal_graphs.presets import CausalGraphsStudy, Training
from helpers.causal_graphs.study import checkpoints
from helpers.config import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with one checkpoint, barely trained on the digits that need no download."""
    out = tmp_path_factory.mktemp("steps")
    with pytest.MonkeyPatch.context() as patch:
        training = Training(epochs=3, batch_size=16, learning_rate=2e-3, schedule="cosine")
        patch.setattr(fits, "recommended", lambda model, dataset: training)
        config = {"preset": "quick", "out": str(out), "verbose": False, "n_samples": 8, "beta_grid": [0.0, 0.1],
                  "stab_runs": 2, "lipschitz.k": 2, "layer_name": "conv2"}  # fmt: skip
        (out / "config.yaml").write_text(yaml.safe_dump(config))
        _ = checkpoints(resolve("run", {"config": str(out / "config.yaml"), "retrain": True}))[0].model
        yield out


def read(command, *words):
    return resolve(command, options.options(words, CausalGraphsStudy, OWN))


def run(folder, command, *options):
    return main([command, "--config", str(folder / "config.yaml"), *options])


def where(folder):
    return folder / "output" / "Digits" / "class_3"


def test_without_a_graph_it_says_how_to_get_one(folder, caplog):
    assert run(folder, "stability", "--target_idx", "7") == 0  # the working folder's graph is discovered
    assert run(folder, "run", "--vis_attr", "True", "--gen_attr", "False") == 2
    assert "instance_path_specific_attributions.safetensors is not there" in caplog.text


def test_each_step_writes_its_files_where_the_release_did(folder):
    assert run(folder, "graph") == 0
    path = where(folder) / "LeNet_causal_graph.json"
    assert CausalGraph.load(path).target == 3
    assert run(folder, "stability", "--layer_name_soft", "fc2") == 0
    assert (where(folder) / "stability.csv").read_text().startswith("beta,appearance,jaccard")
    assert run(folder, "attribute", "--attribution_method", "act_grad") == 0
    maps = HeatMaps.load(where(folder) / "instance_path_specific_attributions.safetensors")
    assert (maps.method, maps.target, maps.layer, len(maps.x)) == ("act_grad", 3, "conv2", 1)
    assert {p.name for p in where(folder).glob("*.png")} >= {"baselines.png", "stability.png"}
    assert run(folder, "evaluate") == 0
    names = sorted(p.name for p in (folder / "output/evaluation_metrics/LeNet").glob("*.csv"))
    assert names == ["irof.csv", "lipschitz_minmax.csv"]
    assert json.loads((folder / "output/config.json").read_text())["eval_attr"] is True


def test_a_graph_of_another_mode_or_seed_is_refused_by_name(folder, caplog):
    assert run(folder, "graph") == 0
    for words in (("--mode", "reference"), ("--delta", "0.3")):
        assert run(folder, "stability", *words) == 2
        assert "LeNet_causal_graph.json was discovered in other weights or with other settings" in caplog.text
        assert "--learn_explainer" in caplog.text
        caplog.clear()


def test_weights_of_ones_own_are_taken(folder, tmp_path):
    (own,) = (folder / "weights").rglob("*.safetensors")
    (tmp_path / "mine.safetensors").write_bytes(own.read_bytes())
    options = ["--weights", str(tmp_path / "mine.safetensors"), "--out", str(tmp_path)]
    assert run(folder, "graph", *options) == 0
    assert (tmp_path / "output/Digits/class_3/LeNet_causal_graph.json").exists()
    assert run(folder, "graph", "--weights", str(tmp_path / "none.safetensors")) == 2


def test_the_page_holds_every_class(folder):
    assert run(folder, "view") == 0
    assert "class 9" in (folder / "output/LeNet.html").read_text()


def test_settings_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="did you mean target_idx"):
        read("run", "--target_id", "3")
    with pytest.raises(ConfigError, match="needs a value"):
        read("run", "--target_idx")
    with pytest.raises(ConfigError, match="cannot be read"):
        read("run", "--config", str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="names and values"):
        read("run", "--config", str(tmp_path / "list.yaml"))
    with pytest.raises(ConfigError, match="unknown preset"):
        read("run", "--preset", "quik")
    assert read("graph", "--mode", "reference").learn_explainer
    assert main(["run", "--target_idx", "three"]) == 2
