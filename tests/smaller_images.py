"""Write the PNG images of notebooks and reports with 8-bit palettes: they look the same and take a third of the bytes. Run by `make notebooks` and `make report`.

    python tests/smaller_images.py nbs/*.ipynb eval/report/*.png
"""
import base64
import io
import sys
from pathlib import Path

import nbformat
from PIL import Image

COLOURS = 48


def smaller(png: bytes) -> bytes:
    "The image on white, in at most `COLOURS` colours; as it is where that would not be smaller."
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    out = io.BytesIO()
    white.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return min(png, out.getvalue(), key=len)


def notebook(path: Path) -> None:
    "Every image in the outputs of a notebook."
    nb = nbformat.read(path, 4)
    for output in (o for cell in nb.cells for o in cell.get("outputs", ())):
        if "image/png" in output.get("data", {}):
            output["data"]["image/png"] = base64.b64encode(smaller(base64.b64decode(output["data"]["image/png"]))).decode() + "\n"
    nbformat.write(nb, path)


for name in map(Path, sys.argv[1:]):
    notebook(name) if name.suffix == ".ipynb" else name.write_bytes(smaller(name.read_bytes()))
