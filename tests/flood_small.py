"""Sen1Floods11 in small, in the official layout, and a server that is bucket and Hub at once."""

import ast
import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import rasterio
from rasterio.transform import from_origin

from helpers.notebooks import list_notebooks, read

SIDE = 32  # pixels of a chip
CHIPS = {
    "train": ["Ghana_1", "Ghana_2", "India_3"],
    "validation": ["Spain_4"],
    "test": ["USA_5"],
    "bolivia": ["Bolivia_6"],
}
IMAGES = "v1.1/data/flood_events/HandLabeled/S2Hand"
LABELS = "v1.1/data/flood_events/HandLabeled/LabelHand"


def in_small(facts):
    """``data_configs/sen1floods11.yaml`` with its sizes changed: for `configured`."""
    facts["side"] = SIDE
    facts["sha256"] = {}
    for split, chips in CHIPS.items():
        facts["splits"][split]["chips"] = len(chips)


def chip(name):
    """(int16 [13, SIDE, SIDE], int8 [SIDE, SIDE]): band b holds about 100 b; water on the left, no data in a corner."""
    draws = np.random.default_rng(sum(map(ord, name)))
    image = 100 * np.arange(13)[:, None, None] + draws.integers(0, 50, (13, SIDE, SIDE))
    mask = np.zeros((SIDE, SIDE), np.int8)
    mask[:, : 4 + draws.integers(0, SIDE // 2)] = 1
    image[7:, mask == 1] = 20
    mask[:3, :3] = -1
    return image.astype(np.int16), mask


def tif(path, values, crs="EPSG:4326", origin=(10.0, 20.0)):
    """A GeoTIFF of [bands, H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    transform = from_origin(*origin, 9e-5, 9e-5)
    shape = {"count": bands, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **shape) as file:
        file.write(values)


def release(folder: Path):
    """All files of the release, below ``folder``."""
    for split, names in CHIPS.items():
        kind = {"validation": "valid"}.get(split, split)
        rows = [f"{name}_S1Hand.tif,{name}_LabelHand.tif" for name in names]
        path = folder / f"v1.1/splits/flood_handlabeled/flood_{kind}_data.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n")
        for name in names:
            image, mask = chip(name)
            tif(folder / IMAGES / f"{name}_S2Hand.tif", image)
            tif(folder / LABELS / f"{name}_LabelHand.tif", mask[None])


@contextmanager
def serving(folder: Path, hub: dict[str, bytes] | None = None, commit="c0ffee"):
    """The address of a server whose bucket "sen1floods11" holds the files of ``folder``, and whose model repositories
    hold ``hub``, ``{"owner/name/file": bytes}``; `asked` on the server lists the paths."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            parts = urlsplit(self.path)
            path, query = unquote(parts.path), parse_qs(parts.query)
            self.server.asked.append(path)
            if path == "/storage/v1/b/sen1floods11/o":
                return self.send(json.dumps(page(folder, query)).encode())
            if path.startswith("/api/models/"):
                owner, name = path.split("/")[3:5]
                found = {key.split("/", 2)[2]: body for key, body in hub.items() if key.startswith(f"{owner}/{name}/")}
                return self.send(json.dumps(about(f"{owner}/{name}", commit, found)).encode())
            if f"/resolve/{commit}/" in path:
                return self.send(hub.get(path[1:].replace(f"/resolve/{commit}", "")))
            file = folder / path.removeprefix("/sen1floods11/")
            self.send(file.read_bytes() if file.is_file() else None)

        def send(self, body):
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def page(folder, query, size=5):
    """A page of a bucket's list, ``size`` objects long."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name.startswith(query["prefix"][0])]
    first = int(query.get("pageToken", ["0"])[0])
    items = [
        {"name": name, "size": str(len(body)), "md5Hash": base64.b64encode(hashlib.md5(body).digest()).decode()}
        for name in names[first : first + size]
        for body in [(folder / name).read_bytes()]
    ]
    return {"items": items} | ({"nextPageToken": str(first + size)} if first + size < len(names) else {})


def run_cells(parameters):
    """The names that the notebook leaves behind, its cells run in this process, where what a test has put in the place
    of the world counts too; what a cell would show is drawn."""
    (path,) = list_notebooks(["02"])
    names = {}
    for cell in read(path).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code" or "bootstrap" in tags:
            continue
        *body, last = ast.parse(cell.source, path.name).body
        shown = isinstance(last, ast.Expr)
        exec(compile(ast.Module(body if shown else [*body, last], []), path.name, "exec"), names)
        value = eval(compile(ast.Expression(last.value), path.name, "eval"), names) if shown else None
        for kind in ("_repr_png_", "_repr_html_"):
            if draw := getattr(value, kind, None):
                draw()
        if "parameters" in tags:
            names |= parameters
    return names


def about(repository, commit, files):
    """What the Hub's API says of a model repository."""
    siblings = [
        {
            "rfilename": name,
            "size": len(body),
            "blobId": "0" * 40,
            "lfs": {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134},
        }
        for name, body in files.items()
    ]
    return {"id": repository, "modelId": repository, "sha": commit, "siblings": siblings, "tags": [], "private": False}
