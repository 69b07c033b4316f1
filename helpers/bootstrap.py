# Bootstrap, the same in every notebook. In a clone it only finds the repository; elsewhere (Colab, Kaggle, an empty
# folder) it fetches this study's part of it into ./sightline, and installs what is missing but never another torch.
import os, re, subprocess, sys, tempfile  # noqa: E401, I001
from pathlib import Path

STUDY, NEEDS = "toyshapes", "captum ipywidgets lightning-fabric matplotlib pandas scipy tqdm"


class BootstrapError(Exception):
    def _render_traceback_(self):  # IPython shows this one line instead of a traceback
        return [f"Sightline: {self}"]


def fetch(root, url, revision, asked=True):
    branch = ["--branch", revision] if revision else []
    options = "--depth=1 --filter=blob:none --sparse -c core.sparseCheckoutCone=true".split()
    folders = "helpers", "data_configs", f"weights/{STUDY}", f"results/{STUDY}"
    env = {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_HTTP_LOW_SPEED_LIMIT": "1", "GIT_HTTP_LOW_SPEED_TIME": "60"}
    quiet = dict(check=True, capture_output=True, text=True, env=os.environ | env)
    try:
        with tempfile.TemporaryDirectory(dir=".", prefix=".sightline-") as temporary:
            new = Path(temporary, "new")
            subprocess.run(["git", "clone", *options, *branch, url, new], **quiet)
            subprocess.run(["git", "-C", new, "sparse-checkout", "set", *folders], **quiet)
            root.parent.mkdir(exist_ok=True)
            new.rename(root)  # so what has the name is complete
    except FileNotFoundError:
        raise BootstrapError("git is missing: install it, or work in a clone") from None
    except OSError as error:
        if not root.exists():  # else another notebook was first
            raise BootstrapError(f"{Path.cwd()} cannot be written to ({error.strerror}): start elsewhere") from None
    except subprocess.CalledProcessError as error:
        if not asked and "Remote branch" in error.stderr:
            print(f"{url} has no {revision}, so its default branch is taken")
            return fetch(root, url, None)
        remedies = {
            "Remote branch": f"{url} has no {revision}: set SIGHTLINE_REVISION to one of its tags or branches",
            "resolve|onnect|timed out|slow|SSL": f"{url} is out of reach: turn the internet on, or work in a clone",
            "": f"no repository can be read at {url}: set SIGHTLINE_URL to one"}
        raise BootstrapError(next(remedies[p] for p in remedies if re.search(p, error.stderr))) from None


def bootstrap(url="https://github.com/sightline-xai/sightline", revision="v0.1.0"):
    asked = os.environ.get("SIGHTLINE_REVISION")
    url, revision = os.environ.get("SIGHTLINE_URL", url), asked or revision
    fetched = Path("sightline", f"{STUDY}-{revision}".replace("/", "-")).absolute()
    above = (Path.cwd(), *Path.cwd().parents)
    root = next((folder for folder in above if (folder / "helpers" / "bootstrap.py").is_file()), fetched)
    root.exists() or fetch(root, url, revision, asked)
    sys.path[:0] = [] if str(root) in sys.path else [str(root)]
    if root == fetched:
        from helpers.needs import install
        install(NEEDS)


bootstrap()
