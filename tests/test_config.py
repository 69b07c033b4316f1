"""Settings cannot be misspelt, mistyped or changed behind one's back, and every error says what would do."""

from typing import ClassVar, Literal

import pytest
import torch
from pydantic import Field

from helpers import config
from helpers.config import ConfigError, Settings, Several, Study, data_config, digest, parse, read_parameters, suggest
from helpers.data import toyshapes
from helpers.pinets.fits import build
from helpers.pinets.presets import GROUPS, ToyShapesStudy


class Optimiser(Settings):
    rate: float = Field(0.1, gt=0)
    steps: int = 5
    betas: Several[float] = (0.9, 0.99)


class Pair(Settings):
    left: Optimiser = Optimiser()
    right: Optimiser = Optimiser(rate=0.2)


class Example(Study):
    presets: ClassVar = {"paper": {}, "quick": {"fits": 2, "pair.*.steps": 1, "pair.right.rate": 0.5}}

    fits: int = Field(30, ge=1)
    colour: Literal["grey", "red"] = "grey"
    names: Several[str] = ("a", "b")
    pair: Pair = Pair()


def notebook(**parameters):
    """A notebook's globals: parameters among the rest of what stands there."""
    return {"__name__": "__main__", "_": 3, "_OH": {}, "np": object(), "Path": object, "settings": 1} | parameters


def refusal(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return str(caught.value)


# --------------------------------------------------------------------------------------------- parameters


def test_without_parameters_the_defaults_hold():
    assert read_parameters(notebook(), Example) == Example()


def test_parameters_are_taken_by_their_upper_case_names():
    given = notebook(SEED=7, RETRAIN=True, DEVICE="cpu", OUT="here", FITS=3, COLOUR="red", NAMES=["c"])
    study = read_parameters(given, Example)
    assert (study.seed, study.retrain, study.device, study.out) == (7, True, "cpu", "here")
    assert (study.fits, study.colour, study.names) == (3, "red", ("c",))
    assert study.reevaluate is False and study.pair == Pair()


def test_defaults_preset_parameters_and_overrides_win_in_this_order():
    assert read_parameters(notebook(PRESET="quick"), Example).fits == 2
    assert read_parameters(notebook(PRESET="quick", FITS=9), Example).fits == 9
    assert read_parameters(notebook(PRESET="quick", FITS=9, OVERRIDES={"fits": 4}), Example).fits == 4
    quick = read_parameters(notebook(PRESET="quick", OVERRIDES={"pair.left.steps": 8}), Example)
    assert (quick.pair.left.steps, quick.pair.right.steps, quick.pair.right.rate) == (8, 1, 0.5)
    assert quick.preset == "quick"


def test_none_means_the_presets_value():
    assert read_parameters(notebook(PRESET="quick", FITS=None), Example).fits == 2
    assert read_parameters(notebook(FITS=None, PRESET=None, SEED=None), Example) == Example()


def test_an_unknown_parameter_is_refused_with_the_near_misses():
    assert refusal(read_parameters, notebook(RETRIAN=1), Example) == "unknown parameter RETRIAN: did you mean RETRAIN?"
    both = refusal(read_parameters, notebook(SEDE=1, FITTS=2), Example)
    assert "unknown parameter FITTS: did you mean FITS" in both and "unknown parameter SEDE: did you mean SEED" in both
    assert "did you mean OVERRIDES?" in refusal(read_parameters, notebook(OVERIDES={}), Example)
    everything = refusal(read_parameters, notebook(XYZ=1), Example)
    assert all(name in everything for name in ("RETRAIN", "PRESET", "OVERRIDES", "COLOUR"))


def test_nested_settings_are_no_parameters():
    assert "unknown parameter PAIR" in refusal(read_parameters, notebook(PAIR={}), Example)


def test_the_bootstrap_cells_names_are_no_parameters():
    assert read_parameters(notebook(STUDY="x", NEEDS="y"), Example) == Example()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"SEED": "seven"}, "seed: Input should be a valid integer (got 'seven')"),
        ({"SEED": 1.0}, "seed: Input should be a valid integer (got 1.0)"),
        ({"SEED": True}, "seed: Input should be a valid integer (got True)"),
        ({"SEED": -1}, "seed: Input should be greater than or equal to 0 (got -1)"),
        ({"RETRAIN": 1}, "retrain: Input should be a valid boolean (got 1)"),
        ({"RETRAIN": "False"}, "retrain: Input should be a valid boolean (got 'False')"),
        ({"DEVICE": "gpu"}, "device: Input should be 'auto', 'cpu', 'cuda' or 'mps' (got 'gpu')"),
        ({"OUT": 3}, "out: Input should be a valid string (got 3)"),
        ({"NAMES": "ab"}, "names: Input should be a valid tuple (got 'ab')"),
        ({"PRESET": "quik"}, "unknown PRESET 'quik': did you mean quick?"),
        ({"PRESET": ["quick"]}, "preset: Input should be a valid string (got ['quick'])"),
        ({"OVERRIDES": ["fits"]}, "OVERRIDES must be a dict of dotted names, not ['fits']"),
        ({"OVERRIDES": {"fits": 0}}, "fits: Input should be greater than or equal to 1 (got 0)"),
        ({"OVERRIDES": {"pair.left.rate": "fast"}}, "pair.left.rate: Input should be a valid number (got 'fast')"),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_value(parameters, message):
    assert refusal(read_parameters, notebook(**parameters), Example) == message


def test_all_wrong_values_are_listed_at_once():
    message = refusal(read_parameters, notebook(SEED="x", FITS=0, PRESET="quick"), Example)
    assert "seed:" in message and "fits:" in message and "\n" not in message


# ----------------------------------------------------------------------------------------------- overrides


def test_overrides_reach_any_setting_by_its_dotted_name():
    study = Example().override({"pair.left.rate": 0.7, "names": ["z"], "pair.right": Optimiser(steps=1)})
    assert study.pair.left == Optimiser(rate=0.7) and study.names == ("z",) and study.pair.right.steps == 1
    assert study.pair.right.rate == 0.1, "a settings object replaces the whole"


def test_a_star_stands_for_every_name_at_its_place():
    study = Example().override({"pair.*.steps": 9})
    assert study.pair.left.steps == study.pair.right.steps == 9
    assert (study.pair.left.rate, study.pair.right.rate) == (0.1, 0.2)
    later = Example().override({"pair.*.steps": 9, "pair.left.steps": 2})
    assert (later.pair.left.steps, later.pair.right.steps) == (2, 9)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fist", "unknown setting 'fist': no 'fist'; did you mean fits?"),
        ("pair.left.rat", "unknown setting 'pair.left.rat': no 'rat' in 'pair.left'; did you mean rate?"),
        ("pair.*.rte", "unknown setting 'pair.*.rte': no 'rte' in 'pair.left'; did you mean rate?"),
        ("pair.middle.rate", "unknown setting 'pair.middle.rate': no 'middle' in 'pair'; there are: left, right"),
        ("fits.rate", "unknown setting 'fits.rate': no 'rate' in 'fits'; there are none"),
        ("", "unknown setting '': no ''; there are: "),
    ],
)
def test_an_unknown_setting_is_refused_with_the_near_misses(name, message):
    assert refusal(Example().override, {name: 1}).startswith(message)


def test_an_unknown_name_within_a_value_is_refused_with_its_own_neighbours():
    message = refusal(Example().override, {"pair.left": {"stpes": 1}})
    assert message == "unknown setting 'pair.left.stpes': did you mean steps?"


def test_an_unknown_name_within_settings_that_may_be_none_is_refused_too():
    class Study(Settings):
        pair: Pair | None = None

    assert refusal(Study().override, {"pair": {"lft": {}}}) == "unknown setting 'pair.lft': did you mean left?"


def test_overriding_leaves_the_original_alone():
    study = Example()
    study.override({"pair.left.rate": 0.7})
    assert study == Example() and Pair().left.rate == 0.1


# ------------------------------------------------------------------------------------------ settings objects


def test_settings_cannot_be_changed_or_extended():
    with pytest.raises(ValueError, match="frozen"):
        Example().fits = 3
    assert "did you mean steps?" in refusal(parse, Optimiser, {"stps": 3})
    assert hash(Example()) == hash(Example()), "they can be a key of a cache"


def test_defaults_are_validated_too():
    class Wrong(Settings):
        rate: float = Field(-1.0, gt=0)

    assert "rate: Input should be greater than 0" in refusal(parse, Wrong, {})


def test_a_reason_given_by_the_settings_comes_through_alone():
    message = refusal(ToyShapesStudy().override, {"data.n_blocks": 15})
    assert message.startswith("data: n_blocks must be a square number") and "Value error" not in message


def test_a_digest_changes_with_every_value_and_with_nothing_else():
    base = Optimiser()
    assert base.digest() == Optimiser().digest() == Optimiser(betas=[0.9, 0.99]).digest()
    others = [Optimiser(rate=0.1000001), Optimiser(steps=6), Optimiser(betas=(0.99, 0.9))]
    assert len({setting.digest() for setting in [base, *others]}) == 4
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert len(base.digest()) == 12 and int(base.digest(), 16) >= 0


def test_suggestions():
    assert suggest("retrian", ["retrain", "seed"]) == "did you mean retrain?"
    assert suggest("zzz", ["b", "a"]) == "there are: a, b"
    assert suggest("zzz", []) == "there are none"


# ------------------------------------------------------------------------------------------------ data sets


def test_a_data_set_without_a_file_is_refused_with_the_near_misses():
    assert data_config("toyshapes")["name"] == "toyshapes"
    assert refusal(data_config, "toyshape") == "no data set 'toyshape': did you mean toyshapes?"


def test_every_data_config_is_named_like_its_file():
    for path in (config.ROOT / "data_configs").glob("*.yaml"):
        facts = data_config(path.stem)
        assert facts["name"] == path.stem
        assert {"source", "licence"} <= facts.keys(), path.name


# -------------------------------------------------------------------------------------- the ToyShapes study


def test_the_groups_are_the_papers_seven():
    """Spec section 3.3: what each changes against the default, and nothing else."""
    groups = {name: getattr(ToyShapesStudy().group, name) for name in GROUPS}
    default = groups["pinet"]
    assert default.model.model_dump() == {
        "kind": "pinet", "width": 16, "depth": 3, "skip": False, "dropout": 0.0, "spatial_decoder": True,
        "second_look": "hard", "activation": "sigmoid"}  # fmt: skip
    training = default.training
    assert (training.learning_rate, training.betas, training.batch_size, training.epochs) == (5e-3, (0.9, 0.95), 32, 50)
    assert (training.min_accuracy, training.feedback, training.strong, training.sparsity) == (0.98, 0, 0, 0)

    def differences(group):
        changed = {}
        for part in ("model", "training"):
            ours, theirs = getattr(groups[group], part).model_dump(), getattr(default, part).model_dump()
            changed |= {key: value for key, value in ours.items() if value != theirs[key]}
        return changed

    assert differences("soft") == {"second_look": "soft"} and differences("naive") == {"spatial_decoder": False}
    assert differences("feedback") == {"feedback": 1000} and differences("strong") == {"strong": 1000}
    assert differences("ensemble") == {} and groups["ensemble"].ensemble
    assert differences("cnn") == {"kind": "cnn", "width": 32, "skip": True, "dropout": 0.1, "learning_rate": 1e-3,
                                  "betas": (0.9, 0.999)}  # fmt: skip


def test_an_unknown_group_is_refused_with_the_near_misses():
    message = refusal(read_parameters, notebook(GROUPS=["pinets"]), ToyShapesStudy)
    assert "unknown group 'pinets': did you mean pinet" in message


@pytest.mark.parametrize("preset", ToyShapesStudy.presets)
def test_every_preset_can_be_read(preset):
    study = read_parameters(notebook(PRESET=preset), ToyShapesStudy)
    assert study.preset == preset and set(study.groups) <= set(GROUPS)


def test_the_provenance_is_what_the_results_depend_on():
    """Not where and how they were computed: one's folders are nobody's business, and make manifests differ."""
    study = ToyShapesStudy(out="somewhere", device="cpu", workers=2, together=3, retrain=True, continue_shipped=True)
    assert study.provenance() == ToyShapesStudy().provenance()
    assert "somewhere" not in str(study.provenance())
    assert study.override({"seed": 3, "data.n_images": 50}).provenance()["data"]["n_images"] == 50
    left_out = ToyShapesStudy.model_fields.keys() - study.provenance().keys()
    assert left_out == {"out", "device", "workers", "together", "retrain", "reevaluate", "continue_shipped"}


def test_a_relative_out_lies_in_the_repository_wherever_the_notebook_is_executed(tmp_path, monkeypatch):
    from helpers.causal_graphs.presets import CausalGraphsStudy
    from helpers.causal_graphs.study import working_folder as graphs
    from helpers.pinets.floods.fits import working_folder as floods
    from helpers.pinets.floods.presets import FloodsStudy
    from helpers.pinets.study import choose_shelf, working_folder
    from helpers.prototypes.fits import working_folder as prototypes
    from helpers.prototypes.presets import PrototypesStudy
    from helpers.self_explaining.fits import working_folder as self_explaining
    from helpers.self_explaining.presets import SelfExplainingStudy

    elsewhere = tmp_path / "notebooks"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(config, "ROOT", tmp_path)
    studies = {"toyshapes": (ToyShapesStudy, working_folder), "floods": (FloodsStudy, floods),
               "causal_graphs": (CausalGraphsStudy, graphs), "prototypes": (PrototypesStudy, prototypes),
               "self_explaining": (SelfExplainingStudy, self_explaining)}  # fmt: skip
    for name, (schema, folder) in studies.items():
        assert folder(schema()) == tmp_path / "runs" / name
        assert folder(schema(out="runs/mine")) == tmp_path / "runs" / "mine"
        assert folder(schema(out=str(elsewhere))) == elsewhere
        assert str(tmp_path) not in str(schema(out="runs/mine").model_dump()), "no machine's path in what is kept"
    monkeypatch.setenv("HOME", str(elsewhere))
    assert working_folder(ToyShapesStudy(out="~/mine")) == elsewhere / "mine"
    (tmp_path / "runs" / "mine" / "weights").mkdir(parents=True)
    assert choose_shelf(ToyShapesStudy(out="runs/mine")).weights.is_relative_to(tmp_path), "it is found again there"


def test_a_group_named_twice_is_refused():
    message = refusal(read_parameters, notebook(GROUPS=["cnn", "pinet", "cnn"]), ToyShapesStudy)
    assert "name each group once" in message


def test_images_that_a_decoder_could_not_restore_are_refused():
    odd = {"data.n_blocks": 9, "data.block_size": 21}
    message = refusal(read_parameters, notebook(GROUPS=["pinet"], OVERRIDES=odd), ToyShapesStudy)
    assert "images 63 pixels wide" in message and "a multiple of 4" in message
    assert "group.pinet.model.depth = 3" in message
    for possible in ({"GROUPS": ["cnn", "naive"]}, {"OVERRIDES": odd | {"group.*.model.depth": 1}}):
        assert read_parameters(notebook(**{"GROUPS": ["pinet"], "OVERRIDES": odd} | possible), ToyShapesStudy)


@pytest.mark.parametrize(("n_blocks", "block_size"), [(4, 9), (36, 9), (4, 10), (1, 12), (9, 8)])
def test_just_those_images_are_refused_that_a_decoder_does_not_restore(n_blocks, block_size):
    size = {"data.n_blocks": n_blocks, "data.block_size": block_size}
    side = toyshapes.generate(0, n_images=1, n_blocks=n_blocks, block_size=block_size).images.shape[1]
    x, network = torch.zeros(1, 1, side, side), build(ToyShapesStudy().group.pinet.model, side).eval()
    try:
        network(x)
    except RuntimeError:
        assert f"images {side} pixels wide" in refusal(ToyShapesStudy().override, size)
    else:
        assert ToyShapesStudy().override(size).data.image_size == side


def test_a_budget_of_masks_that_the_rule_would_ignore_is_refused():
    budget = {"group.strong.training.mask_budget": 3}
    message = refusal(ToyShapesStudy().override, budget)
    assert "mask_budget = 3" in message and 'set mask_rule to "budget"' in message
    assert ToyShapesStudy().override(budget | {"group.strong.training.mask_rule": "budget"})


def test_a_rule_for_masks_that_teach_nothing_is_refused():
    message = refusal(ToyShapesStudy().override, {"group.pinet.training.mask_rule": "budget"})
    assert "means nothing without the mask loss" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.second_look", "soft"), ("model.activation", "tanh"), ("model.spatial_decoder", False),
        ("training.feedback", 1.0), ("training.strong", 1.0), ("training.sparsity", 1.0), ("ensemble", True),
    ],
)  # fmt: skip
def test_what_is_for_pinets_alone_is_refused_for_the_cnn(name, value):
    message = refusal(ToyShapesStudy().override, {f"group.*.{name}": value})
    assert f"{name}: for a PiNet, not a CNN" in message
    assert ToyShapesStudy().override({f"group.pinet.{name}": value})


@pytest.mark.parametrize("betas", [[0.9], [0.9, 0.9, 0.9], [0.9, 1.0], [-0.1, 0.9]])
def test_betas_are_two_shares(betas):
    assert "betas" in refusal(ToyShapesStudy().override, {"group.pinet.training.betas": betas})
    given = ToyShapesStudy().override({"group.pinet.training.betas": [0.8, 0.9]})
    assert given.group.pinet.training.betas == (0.8, 0.9)


@pytest.mark.parametrize("text", ["plain", "{[]: 1}", "(" * 500, "1 2"])
def test_what_is_no_literal_stands_as_it_is(text):
    assert config.literal(text) == text
