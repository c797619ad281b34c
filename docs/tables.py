"""Fill the tables of README.md from the files in results/: `make docs`.

A block between `<!-- NAME -->` and `<!-- /NAME -->` belongs to the table of that name. A test holds
the committed README to what this script writes.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kinetics400.commands.report import ROWS, demo_table, demo_verdict  # noqa: E402 (needs the path)


def inherited() -> str:
    """Accuracies that others measured."""
    rows = json.loads((ROOT / "results/inherited.json").read_text(encoding="utf-8"))["rows"]
    lines = [
        "| model | pretraining | finetuning | top-1 | top-5 | measured by |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['pretraining']} | {row['finetuning']} "
            f"| {row['top1_acc']:.2f} | {row['top5_acc']:.2f} | {row['origin']} |"
        )
    return "\n".join(lines)


def demo() -> str:
    """The committed run of `make demo`."""
    results = json.loads((ROOT / "results/demo/results.json").read_text(encoding="utf-8"))
    minutes = results["seconds"] / 60
    unseen = json.loads((ROOT / "results/demo_seed1.json").read_text(encoding="utf-8"))
    top1 = [f"{unseen[name]['top1_acc']:.1f}" for name in ROWS]
    return (
        f"{demo_table(results)}\n\n"
        f"{demo_verdict(results)} All of it took {minutes:.1f} minutes.\n\n"
        "Classes and settings were chosen with these validation videos in view. On videos never "
        f"looked at before (`--seed 1`) the four rows give {', '.join(top1)} % top-1."
    )


TABLES = {"inherited": inherited, "demo": demo}


def filled(text: str) -> str:
    """`text` with every block filled anew."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, t=table: f"{m[1]}{t()}\n{m[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
