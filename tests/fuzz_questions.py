"""Put random questions through the reading of place, hours and constraints: nothing may raise.

    python tests/fuzz_questions.py [--questions 100] [--seed 0]

A question is a frame with the name of any place on earth, a traveller's message as written or typed carelessly, or text
that nobody types: long runs of one sign, other scripts, halves of characters. The slowest are printed, in CPU seconds.
"""

import argparse
import random
import sys
import time
from pathlib import Path

from pocketguide.travel.day_plan import read_rhythm
from pocketguide.travel.gazetteer import city_keys
from pocketguide.travel.grounding import LAYERS, party_of, window_of
from pocketguide.travel.library import load_library, walk
from pocketguide.travel.places import find_place, unrecognised_place
from pocketguide.travel.prompts import place_facts
from pocketguide.travel.questions import add_noise
from pocketguide.travel.reading import read_question, reading_items

ROOT = Path(__file__).resolve().parent.parent
FRAMES = (
    "{n} days in {a}",
    "{a} {n}d, vegan, twins aged {n}",
    "from {a} to {b} by train, {n}:30 to {m}pm, budget {m}0 {c}",
    "{n} hrs layover in {a} ({b}?), no visa, {c}{m}",
    "{a}, {b}: what can two seniors and a {n} year old do when it rains",
    "lost passport near {a}!!! flight {n}/{m} at {m}:{n}",
    "we land in {a} fri {n}am, leave {b} on sunday {m}pm, wheelchair, < {m}00 {c}/day",
)
CURRENCIES = ("eur", "USD", "€", "$", "¥", "twd", "Rs.", "kr", "лв", "₹")
ODD = (
    "\x00",
    "\ud800",
    "\u202e",
    "\u200d",
    "é",
    "ß",
    "İ",
    "ﷺ",
    "👩‍👩‍👧‍👦",
    "東京",
    "Москва",
    "कोलकाता",
    "１２：３０",
    "½",
    "  \n\t",
)
RUNS = ("a", "a ", "12:00 ", "1", "$", "(", "'", "-", ",", "no ", "2 kids ", "from x to ", "St. ", "\u0301", "days in ")


def odd_text(rng: random.Random) -> str:
    "Return a text that nobody types."
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice(RUNS) * rng.choice((1, 30, 700, 5000))
    if kind == 1:
        return "".join(chr(rng.choice((rng.randrange(32, 0x3000), rng.randrange(0x110000)))) for _ in range(60))
    return " ".join(rng.choice((*ODD, *RUNS, str(rng.randrange(10**6)))) for _ in range(rng.randrange(40)))


def random_question(rng: random.Random, names: list[str], messages: list[str]) -> str:
    "Return a question of any of the three kinds, or two of them in one."
    a, b = rng.choice(names), rng.choice(names).title()
    numbers = {"n": rng.randrange(0, 40), "m": rng.choice((0, 1, 7, 12, 25, 10**6))}
    framed = rng.choice(FRAMES).format(a=a, b=b, c=rng.choice(CURRENCIES), **numbers)
    told = rng.choice(messages).replace("{where}", a).replace("{days}", str(numbers["n"]))
    text = rng.choice((framed, told, told, add_noise(rng, told, [a]), add_noise(rng, framed, [a, b]), odd_text(rng)))
    return text + rng.choice(("", "", "", " " + odd_text(rng), "\n" + framed))


def read(question: str) -> None:
    "Read all that is read of a question before a model sees it."
    find_place(question), unrecognised_place(question), place_facts(question), read_rhythm(question)
    reading = read_question(question)
    party_of(reading), window_of(reading), reading_items(reading)


def main() -> int:
    "Read the questions and print the slowest."
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--questions", type=int, default=100)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    library = load_library(ROOT / "data/content", LAYERS)
    messages, names = [text for _, text in walk(library["tellings"])], city_keys()
    slowest: list[tuple[float, int, str]] = []
    for seed in range(a.seed, a.seed + a.questions):
        question = random_question(random.Random(seed), names, messages)
        began = time.process_time()
        try:
            read(question)
        except Exception:
            print(f"seed {seed}: {question[:2000]!r}", file=sys.stderr)
            raise
        slowest = sorted([*slowest, (round(time.process_time() - began, 2), seed, question[:50])])[-3:]
    print(f"{a.questions} questions read; the slowest (CPU seconds, seed, beginning): {slowest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
