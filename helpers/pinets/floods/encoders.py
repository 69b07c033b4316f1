"""The frozen encoders: vision transformers whose blocks' tokens are handed on as maps (spec pinets, section 6.2).

    encoder = build("prithvi", mean, std)      # float32 [B, 6, H, W] reflectance x 10,000 to [B, 4 * width, h, w]

None of them ever learns: they stay in eval mode and under no-grad whatever is done to the model around them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from helpers import artifacts, downloads, runtime
from helpers.config import data_config
from helpers.data import files
from helpers.downloads import DownloadError, Source

Name = Literal["prithvi", "galileo_nano", "untrained"]
LABELS = {
    "prithvi": "Prithvi-EO-1.0-100M",
    "galileo_nano": "Galileo-nano (stand-in)",
    "untrained": "untrained (stand-in)",
}
GEOMETRY = {
    "untrained": {"width": 24, "patch": 8},
    **{
        name: {key: data_config("flood_encoders")[name][key] for key in ("width", "patch")}
        for name in ("prithvi", "galileo_nano")
    },
}
"""Channels a block and pixels a token, known without the weights."""
DEPTH = 4  # blocks that are built and loaded, whatever the file has
HINT = 'the encoder "untrained" needs no file (PRESET="quick")'


class Frozen(nn.Module):
    """Base of the encoders. ``width`` channels a block, tokens of ``patch`` x ``patch`` pixels."""

    width: int
    patch: int

    def tokens(self, x: Tensor) -> list[Tensor]:
        """[B, width, h, w] of each block, for ``x`` float32 [B, 6, H, W] reflectance x 10,000."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[B, blocks * width, h, w], without a gradient."""
        with torch.no_grad():
            return torch.cat(self.tokens(x), 1)

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)  # dropout and the like of an encoder that does not learn would only be noise

    def freeze(self) -> Frozen:
        return self.requires_grad_(False).train(False)


def build(name: Name, statistics: tuple[np.ndarray, np.ndarray] | None) -> Frozen:
    """An encoder with its weights. ``statistics``: mean and sd [6] of the training tiles; Galileo takes those of its
    pretraining instead. Raises `DownloadError` if the weights cannot be had, `ArtifactError` for other ones."""
    if name == "galileo_nano":
        return galileo_nano()
    network = prithvi(*statistics) if name == "prithvi" else untrained(*statistics)
    if name == "prithvi":
        load_prithvi(network, _read(prithvi_file()))
    return network.freeze()


def fingerprint(encoder: Frozen) -> str:
    """12 hexadecimal digits that change with any weight, and with the normalisation."""
    return artifacts.fingerprint(encoder.state_dict() | dict(encoder.named_buffers()))


# --------------------------------------------------------------------------------------------------- Prithvi


class Prithvi(Frozen):
    """The encoder of Prithvi-EO-1.0 for one date: a 3-D patch embedding, a class token, fixed sine-cosine positions,
    pre-norm blocks. The last block's tokens go through the final norm, whose weights were trained for block 12."""

    def __init__(self, mean: np.ndarray, std: np.ndarray, *, width: int, heads: int, patch: int, depth: int = DEPTH):
        super().__init__()
        from timm.models.vision_transformer import Block

        norm = partial(nn.LayerNorm, eps=1e-6)
        self.width, self.patch = width, patch
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv3d(len(mean), width, (1, patch, patch), (1, patch, patch))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm) for _ in range(depth)
        )
        self.norm = norm(width)
        for key, value in (("mean", mean), ("std", std)):
            self.register_buffer(key, torch.tensor(value, dtype=torch.float32)[:, None, None], persistent=False)

    def tokens(self, x: Tensor) -> list[Tensor]:
        maps = self.patch_embed.proj(((x - self.mean) / self.std)[:, :, None])[:, :, 0]
        h, w = maps.shape[-2:]
        states = maps.flatten(2).mT + positions(self.width, h, w).to(x)
        states = torch.cat([self.cls_token.expand(len(x), -1, -1), states], 1)  # its position is zero
        found = []
        for block in self.blocks:
            states = block(states)
            last = self.norm(states) if len(found) == len(self.blocks) - 1 else states
            found.append(last[:, 1:].mT.unflatten(2, (h, w)))
        return found


def prithvi(mean: np.ndarray, std: np.ndarray) -> Prithvi:
    """The first four blocks, without weights."""
    facts = data_config("flood_encoders")["prithvi"]
    return Prithvi(mean, std, width=facts["width"], heads=facts["heads"], patch=facts["patch"])


def untrained(mean: np.ndarray, std: np.ndarray) -> Prithvi:
    """A small one with random weights, the same in every run: to try things out, and as a control."""
    with runtime.seeded(0, "floods", "untrained"):
        return Prithvi(mean, std, heads=2, **GEOMETRY["untrained"])


def positions(width: int, h: int, w: int) -> Tensor:
    """float32 [h * w, width]: sines then cosines of the column in 3/8 of the channels, of the row in 3/8, and of the
    date, which is 0, in the rest."""
    part = width // 16 * 6
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    date = torch.zeros(h * w)
    parts = [(columns.flatten(), part), (rows.flatten(), part), (date, width - 2 * part)]
    return torch.cat([sines(place.double(), size) for place, size in parts], 1).float()


def sines(place: Tensor, width: int) -> Tensor:
    """[N, width]: sines, then cosines, of ``place`` [N] times 10000^(-i / (width / 2))."""
    angle = place[:, None] * 10_000 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    return torch.cat([angle.sin(), angle.cos()], 1)


def load_prithvi(network: Prithvi, state: Mapping[str, Tensor]) -> None:
    """Put the weights of the released file into ``network``: every parameter must be there under ``encoder.`` with its
    shape. Later blocks, positions and the decoder are left out. Raises `ArtifactError` naming what is missing: a
    network that keeps some random weights would be frozen with them."""
    ours = {key: value for key, value in network.state_dict().items()}
    theirs = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    wrong = [key for key, value in ours.items() if key not in theirs or theirs[key].shape != value.shape]
    if wrong:
        raise artifacts.ArtifactError(
            f"the weights of Prithvi lack {len(wrong)} of {len(ours)} parameters of the encoder, among them "
            f"encoder.{wrong[0]}: it is another file, or one from before the keys were renamed; delete it, and "
            "run again to download the right one"
        )
    network.load_state_dict({key: theirs[key] for key in ours})


def prithvi_file() -> Path:
    """The released weights, downloaded from the Hub (454 MB) unless they are there. The Hub names commit and sha256 of
    the revision; both are kept beside the file, and from then on hold. Raises `DownloadError`."""
    facts = data_config("flood_encoders")["prithvi"]
    folder = downloads.data_root() / facts["folder"]
    path, pin = folder / facts["file"], folder / "source.json"
    if path.exists() and not pin.exists():
        return path  # put there by hand; `load_prithvi` proves that it is whole
    if not pin.exists():
        source = downloads.hub_source(facts["repository"], facts["revision"], facts["file"], hint=HINT)
        artifacts.save_json(pin, source.model_dump())
    return downloads.fetch(Source(**artifacts.load_json(pin)), path, hint=HINT)


# --------------------------------------------------------------------------------------------------- Galileo


class Galileo(Frozen):
    """The encoder of Galileo-nano for one date and the bands at hand: a patch embedding for each group of bands, to
    which group, date, month and place are added; blocks over all tokens; the groups' mean is a location's token."""

    def __init__(self, facts: Mapping[str, Any]):
        super().__init__()
        from timm.models.vision_transformer import Block

        self.width, self.patch = facts["width"], facts["patch"]
        sizes = (3, 1, 2)
        self.bands = [slice(0, 3), slice(3, 4), slice(4, 6)]
        self.embed = nn.ModuleList(nn.Conv2d(n, self.width, self.patch, self.patch) for n in sizes)
        self.blocks = nn.ModuleList(
            Block(self.width, facts["heads"], mlp_ratio=4, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(self.width)
        self.register_buffer("origin", torch.zeros(len(sizes), 3 * self.width // 4))
        low = torch.tensor(facts["mean"]) - 2 * torch.tensor(facts["std"])
        self.register_buffer("low", low[:, None, None], persistent=False)
        self.register_buffer("span", 4 * torch.tensor(facts["std"])[:, None, None], persistent=False)

    def tokens(self, x: Tensor) -> list[Tensor]:
        x = (x - self.low) / self.span
        maps = [embed(x[:, bands]) for embed, bands in zip(self.embed, self.bands, strict=True)]
        h, w = maps[0].shape[-2:]
        states = torch.stack([part.flatten(2).mT for part in maps], 2)  # [B, h * w, groups, width]
        place = metres(self.width // 4, h, w, self.patch).to(x)[:, None].expand(-1, len(maps), -1)
        states = states + torch.cat([self.origin.expand(h * w, -1, -1), place], 2)
        states, found = states.flatten(1, 2), []
        for block in self.blocks:
            states = block(states)
            last = self.norm(states) if len(found) == len(self.blocks) - 1 else states
            found.append(last.unflatten(1, (h * w, len(maps))).mean(2).mT.unflatten(2, (h, w)))
        return found


def metres(width: int, h: int, w: int, patch: int) -> Tensor:
    """float32 [h * w, width]: sines and cosines of the column, then of the row, counted in pixels of 10 m."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    parts = [sines(place.flatten().double() * patch, width // 2) for place in (columns, rows)]
    return torch.cat(parts, 1).float()


def galileo_nano() -> Galileo:
    """Galileo-nano from the file at hand. Raises `DownloadError` if it is not there or not the one it should be."""
    facts = data_config("flood_encoders")["galileo_nano"]
    path = downloads.locate(facts["folder"], [facts["file"]], hint=HINT) / facts["file"]
    files.check(path, facts["sha256"], HINT)
    network, state = Galileo(facts), _read(path)
    network.load_state_dict(_renamed(state, facts))
    return network.freeze()


def _renamed(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Tensor]:
    """The file's weights by the names of `Galileo`: q, k and v of a block as one matrix."""
    found = {f"norm.{kind}": state[f"norm.{kind}"] for kind in ("weight", "bias")}
    for block in range(DEPTH):
        own = f"blocks.{block}."
        for kind in ("weight", "bias"):
            for layer in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"):
                found[f"{own}{layer}.{kind}"] = state[f"{own}{layer}.{kind}"]
            found[f"{own}attn.qkv.{kind}"] = torch.cat([state[f"{own}attn.{part}.{kind}"] for part in "qkv"])
    for number, group in enumerate(facts["groups"]):
        for kind in ("weight", "bias"):
            found[f"embed.{number}.{kind}"] = state[f"space_time_embed.{group}.proj.{kind}"]
    channels, month = state["s_t_channel_embed"], state["month_embed.weight"][facts["month"]]
    date = state["pos_embed"][0]
    found["origin"] = torch.stack([torch.cat([channels[place], date, month]) for place in facts["places"]])
    return found


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict of a third party, through torch's loader of tensors alone."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # which ones depends on what is wrong with the file
        raise DownloadError(
            f"{path} cannot be read ({type(error).__name__}: {str(error).splitlines()[0]})\n  by hand: delete it and "
            f"run again\n  without a download: {HINT}"
        ) from error
