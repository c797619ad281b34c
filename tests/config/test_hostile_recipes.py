"""Recipes are files that people send each other: none may do more than set flags."""

from pathlib import Path

import pytest

from kinetics400.config.parse import parse
from kinetics400.config.pretraining import PretrainConfig
from kinetics400.errors import InputError

NESTED = "n_epoch: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{new} [{', '.join([f'*{old}'] * 8)}]\n"
    for name, old, new in (
        *(("lr", "a", "b"), ("seed", "b", "c"), ("batch_size", "c", "d")),
        *(("accumulate", "d", "e"), ("log_every", "e", "f"), ("n_worker", "f", "g")),
        *(("n_device", "g", "h"), ("n_node", "h", "i"), ("flip", "i", "j")),
    )
)
HOSTILE = {
    "a function to call": "lr: !!python/object/apply:os.system [touch {canary}]",
    "an object to make": "lr: !!python/object/new:pathlib.Path [{canary}]",
    "a name to import": "lr: !!python/name:os.system",
    "a module to import": "lr: !!python/module:antigravity",
    "a tag of its own": "lr: !evil 1",
    "bytes": "lr: !!binary aGVsbG8=",
    "a set": "lr: !!set {{a}}",
    "a mapping": "lr: {{a: 1}}",
    "a list in a list": "crop_scale: [[1]]",
    "lists of lists of lists, 10^9 values": NESTED,
    "a list that holds itself": "lr: &a [*a]",
    "5,000 lists in one another": "lr: " + "[" * 5000 + "]" * 5000,
    "an integer of 5,000 digits": "seed: " + "9" * 5000,
    "an integer of 6,000 hexadecimal digits": "seed: 0x" + "f" * 6000,
    "an integer beyond 64 bits": "seed: 18446744073709551616",
    "a month of 99": "lr: 2001-99-99",
    "a date": "lr: 2001-01-01",
    "a flag as a value": "save_dir: --dry_run",
    "flags in a list": "save_dir: [x, --resume, never]",
    "a null byte": 'save_dir: "a\\0b"',
    "a terminal's escape": 'save_dir: "\\e[2J"',
    "a line break": 'save_dir: "a\\nb"',
    "a lone surrogate": 'save_dir: "\\ud800"',
    "the same flag twice": "lr: 1\nlr: 2",
    "two documents": "lr: 1\n---\nlr: 2",
    "an undefined alias": "lr: *a",
    "a key that is a list": "? [a]\n: 1",
    "a key that is a number": "1: 2",
    "another recipe": "recipe: other.yaml",
    "a tab for indentation": "lr:\n\t- 1",
    "a bad escape": 'save_dir: "\\q"',
    "an unknown flag": "trust_remote_code: true",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_recipe_is_refused_and_does_nothing(text: str, tmp_path: Path) -> None:
    path, canary = tmp_path / "recipe.yaml", tmp_path / "canary"
    path.write_text(text.format(canary=canary), encoding="utf-8")
    with pytest.raises((InputError, SystemExit)) as stopped:
        parse(PretrainConfig, ["--recipe", str(path)], prog="", description="")
    if isinstance(stopped.value, SystemExit):
        assert stopped.value.code == 2
    assert not canary.exists()


def test_a_harmless_one_is_read() -> None:
    """The others are not refused for being recipes."""
    recipe = Path(__file__).parents[2] / "recipes" / "videomae_base_pretrain.yaml"
    assert parse(PretrainConfig, ["--recipe", str(recipe)], prog="", description="")
