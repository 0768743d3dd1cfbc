"""Packaging. Names, versions and requirements live in settings.ini, which nbdev reads as well."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    url=cfg["git_url"],
    packages=find_packages(include=["pocketguide", "pocketguide.*"]),
    package_data={
        "pocketguide.travel": ["schemas/*.json", "places.json", "*.txt", "*.xz", "rules/*.yaml", "rules/*.tsv"]
    },
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={
        name: cfg[f"{name}_requirements"].split()
        for name in "dev constrained gguf server app datasets endpoint tensorboard trackio grpo".split()
    },
    zip_safe=False,
)
