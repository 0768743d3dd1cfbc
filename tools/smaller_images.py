"""Write the PNG images of notebooks and reports with 8-bit palettes: they look the same and take a third of the bytes.

Run by `make notebooks` and `make report`:

    python tools/smaller_images.py nbs/*.ipynb eval/report/*.png
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image

COLOURS = 256  # of an 8-bit PNG
TOLERANCES = (6, 12, 20, 28)  # how far a pixel may move in red, green and blue (0 to 255), smallest first


def pick(colours: np.ndarray, tolerance: int) -> np.ndarray | None:
    """Return for each of `colours` (n, 3), the most frequent first, the index of the colour to show instead.

    A colour is kept exactly unless a more frequent one lies within `tolerance`: lines keep their colour, and only
    the shades at their edges are merged. None if more than `COLOURS` are kept.
    """
    shown = np.full(len(colours), -1)
    for _ in range(COLOURS):
        open_places = np.flatnonzero(shown < 0)
        if not len(open_places):
            return shown
        first = open_places[0]
        near = np.abs(colours[open_places] - colours[first]).max(axis=1) <= tolerance
        shown[open_places[near]] = first
    return shown if (shown >= 0).all() else None


def on_palette(pixels: np.ndarray) -> Image.Image | None:
    "Return the image of `pixels` (height, width, 3) with a palette, or None if no tolerance is enough."
    packed = pixels.astype(np.int64) @ (65536, 256, 1)  # one number per pixel: sorted much faster than rows of three
    codes, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    by_frequency = np.argsort(-counts, kind="stable")
    for tolerance in TOLERANCES:
        shown = pick(colours[by_frequency], tolerance)
        if shown is not None:
            break
    else:
        return None
    kept, entry = np.unique(shown, return_inverse=True)
    entry_of_colour = np.empty(len(colours), dtype=np.uint8)
    entry_of_colour[by_frequency] = entry
    image = Image.fromarray(entry_of_colour[places.reshape(pixels.shape[:2])], mode="P")
    image.putpalette(colours[by_frequency][kept].astype(np.uint8).tobytes())
    return image


def smaller(png: bytes) -> bytes:
    "Return the image on white, with a palette; return it unchanged if that would not be smaller."
    image = Image.open(io.BytesIO(png))
    if image.mode == "P":
        return png
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    image = white.convert("RGB")
    out = io.BytesIO()
    (on_palette(np.asarray(image)) or image).save(out, "PNG", optimize=True)
    return min(png, out.getvalue(), key=len)


def shrink_notebook(path: Path) -> None:
    "Rewrite every image in the outputs of a notebook."
    nb = nbformat.read(path, 4)
    for output in (o for cell in nb.cells for o in cell.get("outputs", ())):
        if "image/png" in output.get("data", {}):
            png = smaller(base64.b64decode(output["data"]["image/png"]))
            output["data"]["image/png"] = base64.b64encode(png).decode() + "\n"
    nbformat.write(nb, path)


def main(names: list[str]) -> None:
    "Shrink the images of the files named: notebooks and PNGs."
    for path in map(Path, names):
        if path.suffix == ".ipynb":
            shrink_notebook(path)
        else:
            path.write_bytes(smaller(path.read_bytes()))


if __name__ == "__main__":
    main(sys.argv[1:])
