"""What can be said of the tree and of the notebooks without a kernel: house rules that a reader or Colab relies on."""

import ast
import json
import re
import subprocess
import sys
import tokenize
from io import StringIO
from pathlib import Path

import pytest

from helpers import __version__, report
from helpers.artifacts import load_tensors
from helpers.notebooks import list_notebooks, read, tagged

ROOT = Path(__file__).parents[1]
NOTEBOOKS = list_notebooks()
BOOTSTRAP = (ROOT / "helpers" / "bootstrap.py").read_text()
PARAMETERS = {"RETRAIN": "bool", "REEVALUATE": "bool", "PRESET": "str", "SEED": "int", "DEVICE": "str", "OUT": "str"}
ABSOLUTE = re.compile(r"(?<![\w.:/~<+])(/(home|root|tmp|work|Users|usr|opt|mnt|content|kaggle)/\w|[A-Z]:\\\\)")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def tracked():
    """The files that are committed or could be: git ignores none of them."""
    command = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def without_needs(source):
    """The bootstrap cell without its one line that differs between notebooks."""
    kept, n = re.subn(r'^STUDY, NEEDS = "\w+", "[\w .-]+"\n', "", source.strip(), flags=re.MULTILINE)
    assert n == 1, "the bootstrap cell needs one line STUDY, NEEDS = ..."
    return kept


def test_there_are_notebooks():
    assert NOTEBOOKS, "notebooks/ is empty"


@every_notebook
def test_the_bootstrap_cell_is_the_canonical_one_and_the_first(path):
    (cell,) = tagged(read(path), "bootstrap")
    assert without_needs(cell.source) == without_needs(BOOTSTRAP)
    assert cell == code(path)[0]


@every_notebook
def test_parameters_are_tagged_typed_commented_literals(path):
    (cell,) = tagged(read(path), "parameters")
    assignments = [node for node in ast.parse(cell.source).body if not isinstance(node, ast.Expr)]
    assert all(isinstance(node, ast.AnnAssign) for node in assignments), "each parameter needs a type"
    for node in assignments:
        ast.literal_eval(node.value)  # papermill can only replace literals
    comments = {
        token.start[0]
        for token in tokenize.generate_tokens(StringIO(cell.source).readline)
        if token.type == tokenize.COMMENT
    }
    assert all(node.lineno in comments for node in assignments), "each parameter needs a comment on its line"
    types = {node.target.id: ast.unparse(node.annotation) for node in assignments}
    assert PARAMETERS.items() <= types.items()
    assert types["OVERRIDES"].startswith("dict")


@every_notebook
def test_papermill_can_list_the_parameters(path):
    import papermill

    inferred = papermill.inspect_notebook(str(path))
    assert PARAMETERS.keys() | {"OVERRIDES"} <= inferred.keys()
    assert all(entry["help"] for entry in inferred.values())


@every_notebook
def test_the_names_are_checked_right_after_the_parameters(path):
    cells = code(path)
    following = cells[cells.index(tagged(read(path), "parameters")[0]) + 1]
    assert "read_parameters(globals()" in following.source


@every_notebook
def test_no_widget_that_can_hang_papermill(path):
    forbidden = re.compile(r"\b(interact|interactive|interact_manual|interactive_output|Output)\b")
    for cell in code(path):
        names = {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Attribute)}
        assert not any(forbidden.fullmatch(name) for name in names)


@every_notebook
def test_outputs_are_stored_in_order_without_errors_widget_state_or_machine_paths(path):
    notebook = read(path)
    assert "widgets" not in notebook.metadata and "papermill" not in notebook.metadata
    assert [cell.execution_count for cell in code(path)] == list(range(1, len(code(path)) + 1))
    assert not any(output.output_type == "error" for cell in code(path) for output in cell.outputs)
    assert not ABSOLUTE.search(path.read_text())
    assert tagged(notebook, "key-figure"), "the page of runs shows the cell tagged key-figure"


@every_notebook
def test_cells_and_file_are_small(path):
    for cell in code(path):
        if "bootstrap" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 15, cell.source
    assert path.stat().st_size < 2**20


@every_notebook
def test_memory_is_bounded(path):
    """As `helpers refresh` measured it when the outputs were stored."""
    assert 0 < read(path).metadata["sightline"]["megabytes"] < 4000


@every_notebook
def test_prose_announces_every_cell(path):
    cells = read(path).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    for before, cell in zip(cells, cells[1:], strict=False):
        announced = before.cell_type == "markdown" or before.metadata.get("tags")  # parameters, and their check
        assert cell.cell_type == "markdown" or announced, f"no prose before:\n{cell.source}"


@every_notebook
def test_badges_and_readme_name_the_notebook(path):
    text = "".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for badge in report.badges(path):
        assert badge in text
    assert f"notebooks/{path.name}" in (ROOT / "README.md").read_text()


def test_the_readme_table_is_up_to_date():
    done = subprocess.run(
        [sys.executable, "-m", "helpers", "readme", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_quotes_messages_as_the_code_has_them():
    """What stands in its table of errors is searched for by the text that is on one's screen."""
    spoken = [(ROOT / "Makefile").read_text()]
    for module in (ROOT / "helpers").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(module.read_text())))
        docs = {node.value for node in nodes if isinstance(node, ast.Expr)}
        texts = {node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        spoken += [node.value for node in texts - docs]
    table = (ROOT / "README.md").read_text().split("## Troubleshooting")[1].split("\n## ")[0]
    messages = re.findall("`([^`]+)`", "\n".join(line.split(" | ")[0] for line in table.splitlines()))
    assert len(messages) > 20
    pieces = {piece.strip() for text in messages for piece in re.split(r"^Sightline: |\.{3}|<\w+>", text)}
    assert [piece for piece in sorted(pieces) if not any(piece in text for text in spoken)] == []


def test_no_shipped_weights_name_a_folder_of_the_machine_that_made_them():
    shipped = [path for path in tracked() if path.suffix == ".safetensors"]
    assert shipped
    for path in shipped:
        assert not ABSOLUTE.search(json.dumps(load_tensors(path)[1])), path


def test_the_tree_is_small_and_holds_no_pickle():
    files = tracked()
    assert sum(path.stat().st_size for path in files) < 40 * 2**20
    pickles = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".npy", ".joblib"}
    assert [path for path in files if path.suffix in pickles] == []


def test_modules_can_be_read_in_one_sitting():
    modules = (ROOT / "helpers").rglob("*.py")
    long = [path.name for path in modules if len(path.read_text().splitlines()) > 400]
    assert long == []


def test_no_machine_path_or_private_host_stands_in_the_tree():
    texts = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cff", ".j2", ""}
    for path in tracked():
        if path.suffix in texts and path != Path(__file__):
            assert not re.search(r"/(root|home|Users|opt|work)/\w|file:///\w+/\w+/simple", path.read_text()), path


def test_every_requirement_says_why():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+[<>=!.,\d]+ +# .+", line) for line in lines)


def test_every_requirement_has_an_exact_version_that_fits():
    from packaging.requirements import Requirement

    exact = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    )
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if text := line.split("#")[0].strip():
            requirement = Requirement(text)
            assert requirement.specifier.contains(exact[requirement.name.replace("_", "-")]), requirement


def test_what_the_bootstrap_cell_fetches_is_this_version():
    assert f'revision="v{__version__}"' in BOOTSTRAP
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()


def test_the_citation_names_every_work_that_the_readme_asks_to_cite():
    asked = (ROOT / "README.md").read_text().split("## Citing")[1]
    cited = re.findall(r"(?:arXiv|OpenReview) (\d{4}\.\d{5}|\w+)", asked)
    assert len(cited) == 7
    stated = (ROOT / "CITATION.cff").read_text()
    assert [work for work in cited if work not in stated] == []


def test_the_repository_is_stated_once():
    url = report.repository()
    assert f'repository-code: "{url}"' in (ROOT / "CITATION.cff").read_text()
    stating = [path.name for path in (ROOT / "helpers").rglob("*.py") if url in path.read_text()]
    assert stating == ["bootstrap.py"]
