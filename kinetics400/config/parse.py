"""Flags to frozen dataclasses: recipe first, then the command line, both through one parser.

A recipe is a YAML mapping from flag to value. It becomes a list of flags put before the user's,
so a later source wins and both are checked alike. (YAML values are never handed to the parser as
defaults: those go unchecked, and `3e-4` is a string in YAML 1.1.)
"""

import dataclasses
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from kinetics400.errors import InputError

Config = TypeVar("Config")

# Two names for one fact: within one source they contradict, across sources the later one wins.
ALTERNATIVES = (("lr", "base_lr"),)
# What belongs to one invocation and never into a recipe.
NOT_IN_RECIPES = ("recipe", "dry_run", "resume")


def parse(config_type: type[Config], argv: Sequence[str], *, prog: str, description: str) -> Config:
    """Parse `argv`, and the recipe it names, into a `config_type`.

    Raises:
        InputError: the recipe cannot be read, has unknown keys, or a source contradicts itself.
        SystemExit: with code 2 on a usage error, 0 after `--help` (the parser has printed).
    """
    sources = [list(argv)]
    recipe = _value_of("recipe", argv)
    if recipe is not None and has_field(config_type, "recipe"):
        sources.insert(0, recipe_to_flags(Path(recipe), config_type))
    for pair in ALTERNATIVES:
        sources = _keep_the_later(sources, pair)
    return tyro.cli(
        config_type,
        prog=prog,
        description=description,
        args=[flag for source in sources for flag in source],
        config=(tyro.conf.OmitArgPrefixes,),
        use_underscores=True,
    )


def field_names(config_type: type) -> Iterator[str]:
    """Names of all flags of a config, groups flattened."""
    for field in dataclasses.fields(config_type):
        if dataclasses.is_dataclass(field.type):
            yield from field_names(field.type)  # type: ignore[arg-type]
        else:
            yield field.name


def has_field(config_type: type, name: str) -> bool:
    """Whether a config has a flag of this name."""
    return name in field_names(config_type)


def flatten(config: Any) -> dict[str, Any]:
    """All flags of a config as one flat mapping, groups flattened."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value))
        else:
            flat[field.name] = value
    return flat


def named_flags(argv: Sequence[str]) -> set[str]:
    """Names of the flags that a command line gives."""
    return {name for token in argv if (name := _flag_name(token)) is not None}


def to_recipe(config: Any) -> str:
    """Write a config as YAML that `--recipe` reads back to an equal config."""
    plain = {
        name: _plain(value)
        for name, value in flatten(config).items()
        if value is not None and name not in NOT_IN_RECIPES
    }
    return yaml.safe_dump(plain, sort_keys=False)


def recipe_to_flags(path: Path, config_type: type) -> list[str]:
    """Read a recipe file, which may be anybody's, as a list of command-line flags.

    Raises:
        InputError: it is no flat mapping from flags to values.
    """
    try:
        text = path.read_text(encoding="utf-8")
        recipe, names = yaml.safe_load(text), _keys(text)
    # YAML's own numbers and dates can be wrong, and its lists deeper than Python's stack.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"--recipe {path}: cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise InputError(f"--recipe {path}: expected lines of the form `flag: value`")
    known = [name for name in field_names(config_type) if name not in NOT_IN_RECIPES]
    unknown = [str(key) for key in recipe if key not in known]
    if unknown:
        close = {key: get_close_matches(key, known, n=1) for key in unknown}
        hints = [f"{key!r}" + (f" (perhaps {c[0]!r})" if c else "") for key, c in close.items()]
        raise InputError(f"--recipe {path}: unknown keys {', '.join(hints)}")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"--recipe {path}: given twice: {', '.join(repeated)}")
    flags: list[str] = []
    for key, value in recipe.items():
        if isinstance(value, bool):
            flags.append(f"--{key}" if value else f"--no_{key}")
            continue
        values = value if isinstance(value, list) else [value]
        if not all(map(_is_plain_value, values)):
            raise InputError(
                f"--recipe {path}: {key}: expected a number, a text, or a list of them"
            )
        flags += [f"--{key}", *map(str, values)]
    return flags


def _keys(text: str) -> list[str]:
    """Keys of a YAML mapping, in order: the loader itself keeps the last of equal ones."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []


def _is_plain_value(value: Any) -> bool:
    """Whether a value can stand on a command line, and can mean no other flag there."""
    if isinstance(value, int):
        return abs(value) < 2**63
    if isinstance(value, str):
        return value.isprintable() and not value.startswith("--")
    return value is None or isinstance(value, float)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _flag_name(token: str) -> str | None:
    if not token.startswith("--"):
        return None
    return token[2:].split("=", 1)[0].replace("-", "_")


def _value_of(name: str, argv: Sequence[str]) -> str | None:
    value = None
    for position, token in enumerate(argv):
        if _flag_name(token) == name:
            following = argv[position + 1] if position + 1 < len(argv) else None
            value = token.split("=", 1)[1] if "=" in token else following
    return value


def _keep_the_later(sources: list[list[str]], pair: tuple[str, str]) -> list[list[str]]:
    """Of two alternative flags keep the one that the last source names."""
    winner = None
    for source in sources:
        named = {_flag_name(token) for token in source} & set(pair)
        if len(named) == 2:
            first, second = pair
            raise InputError(f"--{first} and --{second} contradict each other: give one of them")
        winner = named.pop() if named else winner
    loser = {pair[0]: pair[1], pair[1]: pair[0]}.get(winner or "")
    return [_without(source, loser) for source in sources] if loser else sources


def _without(source: list[str], name: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for token in source:
        if skip:
            skip = False
        elif _flag_name(token) == name:
            skip = "=" not in token
        else:
            kept.append(token)
    return kept
