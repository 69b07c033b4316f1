"""The pictures of the explorer of prototypes: birds with boxes and maps as arrays, bars as SVG."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from helpers import widgets
from helpers.figures import BLUE, GREEN, GREY, PURPLE, RED, SKY
from helpers.prototypes.explanations import Box
from helpers.prototypes.views import Evidence, Look

TINTS = (BLUE, RED, GREEN, PURPLE)  # of the prototypes; numbers stand beside them
UPSAMPLED = "#222222"  # of up-sampled boxes
SCALE = 2  # pixels of a picture for one of a bird
LINE, HALO, DASH = 2, 1, 6  # pixels of a picture: an outline, the white along both its sides, and one of its dashes
PALE = 0.55  # how far what is outside a box goes towards white
BLANK = 235  # the grey of what is not there
HEAT = 0.85  # weight of a map's greatest value over the bird
CLASSES = 8  # whose logits are drawn
BARE = 'fill="currentColor" fill-opacity=".12" stroke="currentColor" stroke-width="1.2"'


def shown(pixels: Tensor) -> np.ndarray:
    """uint8 [S * SCALE, S * SCALE, 3] of ``pixels`` [3, S, S] in [0, 1]."""
    return widgets.enlarge((pixels.movedim(0, -1) * 255).round().byte().numpy(), SCALE)


def origin(seen: Evidence, like: Tensor, tint: str) -> np.ndarray:
    """The patch of a training bird that a prototype is; grey before the first projection."""
    if seen.source_pixels is None:
        return np.full_like(shown(like), BLANK)
    return patch(seen.source_pixels, seen.source_box, tint)


def mapped(pixels: Tensor, seen: Evidence, tint: str) -> np.ndarray:
    """The bird with a prototype's map, if there is one, and both boxes."""
    picture = shown(pixels) if seen.heat is None else heated(pixels, seen.heat)
    return outlined(outlined(picture, seen.box, tint), seen.upsampled_box, UPSAMPLED, True)


def patch(pixels: Tensor, box: Box, tint: str) -> np.ndarray:
    """The picture with a box outlined, and what is outside of it pale."""
    y0, y1, x0, x1 = box
    pale = pixels + PALE * (1 - pixels)
    pale[:, y0:y1, x0:x1] = pixels[:, y0:y1, x0:x1]
    return outlined(shown(pale), box, tint)


def heated(pixels: Tensor, heat: np.ndarray) -> np.ndarray:
    """A map in colours over the bird in grey: from its least value, transparent, to its greatest."""
    low, high = float(heat.min()), float(heat.max())
    weight = HEAT * ((heat - low) / (high - low or 1))[..., None]
    grey = 255 * pixels.mean(0).numpy()[..., None]
    return widgets.enlarge((grey + weight * (widgets.colour(heat, "heat", low, high) - grey)).astype(np.uint8), SCALE)


def outlined(picture: np.ndarray, box: Box, tint: str, dashed: bool = False) -> np.ndarray:
    """An enlarged picture with a line along the inner edge of a box, which has white on both sides and in its gaps."""
    y0, y1, x0, x1 = (SCALE * edge for edge in box)
    picture, height, width = picture.copy(), y1 - y0, x1 - x0
    y, x = np.ogrid[:height, :width]
    depth = np.minimum(np.minimum(y, height - 1 - y), np.minimum(x, width - 1 - x))
    inside = picture[y0:y1, x0:x1]
    inside[depth < LINE + 2 * HALO] = 255
    line = (depth >= HALO) & (depth < HALO + LINE)
    inside[line & ((x + y) // DASH % 2 == 0) if dashed else line] = ImageColor.getrgb(tint)
    return picture


def numbered(pixels: Tensor, boxes: Sequence[Box]) -> np.ndarray:
    """The picture with one box for each prototype and its number in the corner, or beside those that are there."""
    picture, font, side = shown(pixels), ImageFont.load_default(size=12), 16
    for place in reversed(range(len(boxes))):
        picture = outlined(picture, boxes[place], TINTS[place])
    page, taken = Image.fromarray(picture), []
    draw, room = ImageDraw.Draw(page), page.width - side - 4
    for place, (top, _, left, _) in enumerate(boxes):
        x, y = min(SCALE * left + 4, room), min(SCALE * top + 4, room)
        step = side + 1 if x < page.width / 2 else -side - 1
        while any(abs(x - other_x) <= side and abs(y - other_y) <= side for other_x, other_y in taken):
            x += step
        taken.append((x, y))
        draw.rectangle((x, y, x + side - 1, y + side - 1), TINTS[place])
        draw.text((x + side / 2, y + side / 2), str(place + 1), "white", font, anchor="mm")
    return np.asarray(page)


# ---------------------------------------------------------------------------------------------------- as SVG text


def number(value: float, signed: bool = False) -> str:
    """``1.23``, or with its sign; the minus is as long as the plus."""
    return f"{value:{'+' if signed else ''}.2f}".replace("-", "−")


def bar(before: float, after: float, most: float, tint: str, width: int = 560) -> str:
    """A contribution for the bird as it is, outlined, and for the one that is shown, filled; ``most`` is all of it."""
    wide = [(width - 2) * abs(value) / most if most else 0 for value in (before, after)]
    return (_svg(width, 14, f"{number(before)} before, {number(after)} now")
            + f'<rect x="1" y="1" width="{wide[0]:.1f}" height="12" {BARE}/>'
            f'<rect x="1" y="3.5" width="{wide[1]:.1f}" height="7" fill="{tint}"/></svg>')  # fmt: skip


def logits(look: Look, classes: Sequence[str], true: int, width: int = 560, row: int = 28) -> str:
    """The highest logits, with those of the true class and the one that is explained: for the bird as it is, outlined,
    and for the bird that is shown, filled. Text has the colour of its surroundings, so light and dark pages both do."""
    before, after = look.before.logits.tolist(), look.after.logits.tolist()
    order = sorted(range(len(classes)), key=lambda k: -max(before[k], after[k]))
    needed = list(dict.fromkeys((true, look.explained, look.after.predicted, *order)))
    kept = sorted(needed[:CLASSES], key=order.index)
    low = min(0.0, *(values[k] for k in kept for values in (before, after)))
    high = max(0.0, *(values[k] for k in kept for values in (before, after))) or 1.0
    left, right, top = 112, width - 104, 24
    scale = (right - left) / (high - low)
    zero = left - low * scale
    edited = look.before is not look.after
    parts = [_svg(width, top + row * len(kept) + 4, "Logits: " + ", ".join(
        f"{classes[k]} {before[k]:.2f} before, {after[k]:.2f} now" for k in kept)),
        f'<rect x="{left}" y="2" width="11" height="11" {BARE}/>',
        f'<text x="{left + 17}" y="12">logit of the bird as it is</text>',
        f'<rect x="{left + 180}" y="2" width="11" height="11" fill="{GREY}"/>',
        f'<text x="{left + 197}" y="12">of the bird that is shown</text>']  # fmt: skip
    for place, k in enumerate(kept):
        y, name = top + row * place, classes[k] if len(classes[k]) <= 12 else f"{classes[k][:11]}…"
        bold = ' font-weight="700"' if k == true else ""
        parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end"{bold}>{html.escape(name)}</text>')
        fill = f'fill="{SKY if k == look.explained else GREY}"'
        for value, inset, style in ((before[k], 1, BARE), (after[k], 5, fill)):
            x, wide = zero + min(0.0, value) * scale, abs(value) * scale
            parts.append(f'<rect x="{x:.1f}" y="{y + inset}" width="{wide:.1f}" height="{20 - 2 * inset}" {style}/>')
        text = f"{number(before[k])} → {number(after[k])}" if edited else number(after[k])
        parts.append(f'<text x="{right + 6}" y="{y + 15}">{text}</text>')
    return "".join(parts) + "</svg>"


def _svg(width: int, height: int, said: str) -> str:
    return (f'<svg class="sightline-svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'aria-label="{html.escape(said)}">')  # fmt: skip
