"""The table of recipes, from the files themselves."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from measured import ROOT

HEAD = (
    "| recipe | epochs | global batch | largest learning rate | clips per video | published |\n"
    "|---|---|---|---|---|---|"
)


def recipes() -> str:
    """One row per recipe, pretraining before its finetuning."""
    return "\n".join([HEAD, *_rows()])


def _rows() -> Iterator[str]:
    for path in sorted((ROOT / "recipes").glob("*.yaml"), key=_order):
        text = path.read_text(encoding="utf-8")
        recipe = yaml.safe_load(text)
        batch = recipe["batch_size"] * recipe["accumulate"] * recipe["n_device"]
        rate = float(recipe["lr"]) if "lr" in recipe else float(recipe["base_lr"]) * batch / 256
        yield (
            f"| [{path.stem}](../recipes/{path.name}) | {recipe['n_epoch']} | {batch} "
            f"| {rate:.3g} | {recipe['num_sample']} | {_accuracy(text)} |"
        )


def _order(path: Path) -> tuple[Any, ...]:
    model, size, job, *variant = path.stem.split("_")
    return model, ("tiny", "small", "base", "large", "huge").index(size), variant, job != "pretrain"


def _accuracy(text: str) -> str:
    found = re.search(r"^# (Published|Inherited) \(top-1 / top-5\): ([\d.]+ / [\d.]+)", text, re.M)
    if found is None:
        return "–"
    return found[2] + (" (inherited)" if found[1] == "Inherited" else "")
