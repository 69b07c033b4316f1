"""What a notebook can be given is read from its file, and refused in words that help before it is executed."""

import nbformat
import pytest
import sweeping

from helpers.config import ConfigError, read_parameters
from helpers.notebooks import list_notebooks, read
from helpers.parameters import signature
from helpers.sweeps import identity

LITERAL = '''KIND: Literal["plain", "fancy"] = "plain"  # a choice
SIZE: int | None = None  # or as it is
SCALE: float = 1.0  # a factor
NAMES: list = None  # some names
FLAG = False'''


@pytest.fixture
def takes(tmp_path):
    return signature(sweeping.write(tmp_path, parameters=LITERAL))


def of(number):
    return signature(list_notebooks([number])[0])


@pytest.mark.parametrize("path", list_notebooks(), ids=lambda path: path.stem)
def test_every_notebook_is_checked_by_its_own_schema(path):
    takes = signature(path)
    assert takes.schema and read_parameters(takes.defaults, takes.schema)
    assert takes.accept({"seed": 3, "PRESET": "quick"}) == {"SEED": 3, "PRESET": "quick"}
    for given, message in [
        ({"RETRIAN": True}, "unknown parameter RETRIAN: did you mean RETRAIN"),
        ({"PRESET": "quik"}, "unknown PRESET 'quik': did you mean quick"),
        ({"SEED": "seven"}, "seed: Input should be a valid integer"),
        ({"DEVICE": "gpu"}, "'auto', 'cpu', 'cuda' or 'mps'"),
        ({"SEED": 1, "seed": 2}, "seed is given twice"),
    ]:
        with pytest.raises(ConfigError, match=f"{path.stem}: .*{message}"):
            takes.accept(given)


def test_a_setting_of_the_study_goes_to_the_overrides():
    assert of("04").accept({"few_shot_train_percent": 0.02}) == {"FEW_SHOT_TRAIN_PERCENT": 0.02}
    assert of("04").accept({"BATCH_SIZE": 64}) == {"OVERRIDES": {"batch_size": 64}}
    given = {"OVERRIDES": {"data.n_images": 9}, "group.*.training.epochs": 3, "data.block-size": 8}
    overrides = {"data.n_images": 9, "group.*.training.epochs": 3, "data.block_size": 8}
    assert of("01").accept(given) == {"OVERRIDES": overrides}
    with pytest.raises(ConfigError, match="unknown setting .*did you mean epochs"):
        of("01").accept({"group.*.training.epoch": 3})
    with pytest.raises(ConfigError, match="group.pinet.training.epochs: Input should be greater"):
        of("01").accept({"group.pinet.training.epochs": 0})


def test_the_first_words_of_a_parameter_are_enough_where_only_one_begins_with_them(tmp_path):
    takes = of("03")
    assert takes.accept({"TARGET": 5}) == takes.accept({"target": 5}) == {"TARGET_IDX": 5}
    assert takes.cut_short(["TARGET", "SEED", "N_SAMPLES", "delta"]) == [
        "03_causal_graphs: TARGET is taken for TARGET_IDX"
    ]
    for given, message in [
        ({"LAYER": "fc1"}, "unknown parameter LAYER: did you mean LAYER_NAME"),  # or LAYER_NAME_SOFT
        ({"TARG": 5}, "unknown parameter TARG"),
        ({"TARGET": 5, "TARGET_IDX": 5}, "TARGET_IDX is given twice"),
    ]:
        with pytest.raises(ConfigError, match=message):
            takes.accept(given)


@pytest.mark.parametrize("given", [
    {"KIND": "fancy"}, {"size": 3}, {"SIZE": None}, {"SCALE": 2}, {"NAMES": ("a", "b")}, {"flag": True},
])  # fmt: skip
def test_a_notebook_without_a_schema_is_checked_by_its_annotations(takes, given):
    ((name, value),) = given.items()
    assert takes.accept(given) == {name.upper(): list(value) if isinstance(value, tuple) else value}


@pytest.mark.parametrize(("given", "message"), [
    ({"KIND": "fanzy"}, "KIND cannot be 'fanzy': did you mean fancy"),
    ({"SIZE": 1.5}, "SIZE must be int"),
    ({"SIZE": True}, "SIZE must be int"),
    ({"SCALE": None}, "SCALE must be float"),
    ({"NAMES": "a"}, "NAMES must be list"),
    ({"FLAG": 1}, "FLAG must be bool"),
    ({"NAMES": [{1}]}, "has to be text, a number, a list or a dict"),
    ({"SCALE": float("nan")}, "has to be"),
    ({"scale.of": 1}, "unknown parameter scale.of: did you mean SCALE"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(takes, given, message):
    with pytest.raises(ConfigError, match=message):
        takes.accept(given)


def test_a_parameter_that_is_no_literal_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="the parameter SEED is no literal"):
        signature(sweeping.write(tmp_path, parameters="SEED = 3 + len('four')"))


# ------------------------------------------------------------------------------------------------ what a run is


def a_tree(root, monkeypatch):
    """A small repository: a notebook that imports one module, which imports another, and one that nobody imports."""
    for name, text in {
        "__init__": "", "used": "from . import deeper\n", "deeper/__init__": "", "deeper/deepest": "x = 1\n",
        "later": "def f():\n    from helpers.deeper.deepest import x\n", "other": "y = 1\n",
    }.items():  # fmt: skip
        path = root / "helpers" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "data_configs").mkdir()
    (root / "data_configs" / "set.yaml").write_text("a: 1")
    monkeypatch.setattr(identity.config, "ROOT", root)
    cells = 'STUDY, NEEDS = "tiny", "numpy"', "%time 1\nfrom helpers import later", "import helpers.used as u"
    path = sweeping.write(root / "notebooks", *cells, parameters="SEED: int = 0\nOUT: str = ''\nRETRAIN: bool = False")
    notebook = read(path)
    notebook.cells[2].metadata["tags"] = ["bootstrap"]
    nbformat.write(notebook, path)
    for kind in ("weights", "results"):
        (root / kind / "tiny").mkdir(parents=True)
        (root / kind / "tiny" / "manifest.json").write_text("{}")
    return path


def test_the_identity_changes_with_what_computes_and_with_nothing_else(tmp_path, monkeypatch):
    path = a_tree(tmp_path, monkeypatch)

    def now(**given):
        takes = signature(path)
        return identity.identity(path, takes, takes.accept(given))

    def edited(name, text):
        file, before, first = tmp_path / name, (tmp_path / name).read_text(), now()
        file.write_text(text)
        changed = now() != first
        file.write_text(before)
        assert now() == first
        return changed

    assert now() == now(SEED=0) == now(OUT="elsewhere") != now(SEED=1)
    assert now(RETRAIN=True) not in (now(), now(RETRAIN=True, SEED=1))
    assert edited("helpers/used.py", "from . import deeper  # later") and edited("helpers/deeper/deepest.py", "x = 2")
    assert edited("helpers/later.py", "x = 1") and edited("data_configs/set.yaml", "a: 2")
    assert not edited("helpers/other.py", "y = 2"), "nothing imports it"
    assert edited("results/tiny/manifest.json", "[]"), "what is shipped is read"
    text = path.read_text()
    assert not edited("notebooks/01_tiny.ipynb", text.replace("# Tiny", "# Other words")), "prose computes nothing"
    assert edited("notebooks/01_tiny.ipynb", text.replace("helpers.used as u", "helpers.used as v"))
    before = now(RETRAIN=True)
    (tmp_path / "weights" / "tiny" / "manifest.json").write_text("[]")
    assert now(RETRAIN=True) == before, "a run that trains reads nothing that is shipped"
    path.write_text(path.read_text().replace("helpers.used as u", "helpers.used as u; u.published(0)"))
    before = now(RETRAIN=True)
    (tmp_path / "weights" / "tiny" / "manifest.json").write_text("{}")
    assert now(RETRAIN=True) != before, "but for what its notebook shows beside its own"


def test_a_notebook_reaches_the_modules_of_its_study_and_no_other_study():
    path = list_notebooks(["01"])[0]
    cells = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    reached = {module.relative_to(identity.config.ROOT).as_posix() for module in identity.reached(cells)}
    assert {"helpers/pinets/fits.py", "helpers/training.py", "helpers/data/toyshapes.py", "helpers/config.py",
            "helpers/attribution/__init__.py"} <= reached  # fmt: skip
    assert not [name for name in reached if "prototypes" in name or "self_explaining" in name or "sweeps" in name]
