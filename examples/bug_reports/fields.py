"""Say how often each field of the bug reports is right: examples/bug_reports/results, or the results of a run of yours.

    python examples/bug_reports/fields.py [RESULTS ...]    # folders of base_outputs.jsonl and finetuned_outputs.jsonl

A fixed word (product, severity, operating system, frequency) is right if it is the written one. A copied text (version,
device, rate, name of a file) is grounded if it stands in the message: a valid answer may still be invented.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from pocketguide.core.files import read_jsonl
from pocketguide.core.stats import markdown_table, rate_text

FIXED = {
    "product": lambda report: report["product"],
    "severity": lambda report: report["severity"],
    "operating system": lambda report: report["environment"]["os"],
    "frequency": lambda report: report["frequency"]["type"],
}


def copied(report: dict) -> Iterator[str]:
    "Yield the texts of a report that have to stand in the message."
    yield from (report["environment"][key] for key in ("version", "device") if key in report["environment"])
    yield from (report["frequency"][key] for key in ("rate",) if key in report["frequency"])
    yield from (attachment["name"] for attachment in report.get("attachments", ()))


def field_rates(written: dict[str, dict]) -> dict[str, Callable[[dict], bool]]:
    "Return the rates of a report's content; `written` has the written report to each message."

    def right(value: Callable) -> Callable[[dict], bool]:
        return lambda row: row["schema_valid"] and value(row["parsed_json"]) == value(written[row["prompt"]])

    def is_grounded(row: dict) -> bool:
        return row["schema_valid"] and all(text in row["prompt"] for text in copied(row["parsed_json"]))

    same_texts = right(lambda report: set(copied(report)))
    fields = {field: right(value) for field, value in FIXED.items()}
    return {**fields, "nothing invented": is_grounded, "copied texts as written": same_texts}


def table_row(name: str, answers: list[dict], written: dict[str, dict]) -> dict:
    "Return the rates of one model's answers: of all for validity and fixed words, of copied texts for those."
    valid = [(row, row["parsed_json"]) for row in answers if row["schema_valid"]]
    n, texts = len(answers), [(text, row["prompt"]) for row, report in valid for text in copied(report)]
    rates, right = {"answers": name, "fits the schema": rate_text(len(valid), n)}, field_rates(written)
    rates |= {field: rate_text(sum(map(right[field], answers)), n) for field in FIXED}
    grounded = sum(text in prompt for text, prompt in texts)
    return {**rates, "copied texts in the message": rate_text(grounded, len(texts)) if texts else "none"}


def main(folders: list[Path]) -> None:
    "Print one line for each model and way of decoding."
    written = {row["prompt"]: row["completion"] for row in read_jsonl(HERE / "rows.jsonl")}
    rows = []
    for folder in folders:
        for side in ("base", "finetuned"):
            rows.append(table_row(f"{side}, {folder.name}", read_jsonl(folder / f"{side}_outputs.jsonl"), written))
    print(markdown_table(rows))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or [HERE / "results" / way for way in ("free", "constrained")])
