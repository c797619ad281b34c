"""Recipes and the command line meet in one parser; the later source wins."""

import ast
import dataclasses
import inspect
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinetics400.__main__ import COMMANDS, run_command
from kinetics400.config.finetuning import TrainConfig
from kinetics400.config.parse import field_names, flatten, parse, to_recipe
from kinetics400.config.pretraining import PretrainConfig
from kinetics400.errors import InputError

CONFIGS = {"pretrain": PretrainConfig, "train": TrainConfig}


def train_config(*argv: str) -> TrainConfig:
    return parse(TrainConfig, argv, prog="train", description="")


def pretrain_config(*argv: str) -> PretrainConfig:
    return parse(PretrainConfig, argv, prog="pretraining", description="")


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """Write a recipe and return the flags that name it."""

    def write(text: str) -> tuple[str, str]:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return "--recipe", str(path)

    return write


# --- precedence -----------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_recipe_and_that_over_defaults(recipe: Any) -> None:
    flags = recipe("n_epoch: 7\nbatch_size: 5\n")
    for argv in ((*flags, "--batch_size", "6"), ("--batch_size", "6", *flags)):
        config = train_config(*argv)
        assert (config.optimization.n_epoch, config.optimization.batch_size) == (7, 6)
        assert config.optimization.accumulate == 1


@pytest.mark.parametrize("form", ["--recipe={}", "--recipe {}"])
def test_both_ways_of_naming_a_recipe(recipe: Any, form: str) -> None:
    _, path = recipe("seed: 11\n")
    assert train_config(*form.format(path).split()).run.seed == 11


@pytest.mark.parametrize(
    ("text", "argv", "lr", "base_lr"),
    [
        ("", ["--lr", "1"], 1, None),
        ("", ["--base_lr", "2"], None, 2),
        ("lr: 1", [], 1, None),
        ("base_lr: 2", [], None, 2),
        ("lr: 1", ["--base_lr", "2"], None, 2),
        ("base_lr: 2", ["--lr", "1"], 1, None),
        ("base_lr: 2", ["--lr=1"], 1, None),
        ("base_lr: 2", ["--base_lr", "3"], None, 3),
    ],
)
def test_of_lr_and_base_lr_the_later_source_wins(
    recipe: Any, text: str, argv: list[str], lr: float | None, base_lr: float | None
) -> None:
    flags = recipe(text) if text else ()
    for whole in ([*flags, *argv], [*argv, *flags]):
        found = train_config(*whole).optimization
        assert (found.lr, found.base_lr) == (lr, base_lr)


@pytest.mark.parametrize("in_recipe", [True, False])
def test_lr_and_base_lr_in_one_source_contradict(recipe: Any, in_recipe: bool) -> None:
    argv = recipe("lr: 1\nbase_lr: 2") if in_recipe else ("--lr", "1", "--base_lr=2")
    with pytest.raises(InputError, match="--lr and --base_lr contradict each other"):
        train_config(*argv)


# --- values ---------------------------------------------------------------------------------------


def test_values_of_a_recipe_get_the_types_of_the_flags(recipe: Any) -> None:
    """`3e-4` is a string to YAML 1.1; what reaches the config is a number."""
    assert isinstance(yaml.safe_load("lr: 3e-4")["lr"], str)
    flags = recipe(
        "lr: 3e-4\n"
        "pretrained: yes\n"
        "pretrained_dir: some where/with spaces\n"
        "crop_scale: [0.5, 1]\n"
        "views: 2x3\n"
        "flip: 0\n"
        "num_classes: 10\n"
        "clip_grad: null\n"
    )
    config = train_config(*flags)
    assert config.optimization.lr == 0.0003
    assert config.pretrained.pretrained is True
    assert config.pretrained.pretrained_dir == Path("some where/with spaces")
    assert config.augmentation.crop_scale == (0.5, 1.0)
    assert config.evaluation.views == "2x3"
    assert (config.augmentation.flip, config.classifier.num_classes) == (0.0, 10)
    assert config.optimization.clip_grad is None


@pytest.mark.parametrize(
    ("text", "argv", "expected"),
    [
        ("", [], True),
        ("", ["--norm_pix_loss"], True),
        ("", ["--no_norm_pix_loss"], False),
        ("norm_pix_loss: false", [], False),
        ("norm_pix_loss: true", [], True),
        ("norm_pix_loss: false", ["--norm_pix_loss"], True),
        ("norm_pix_loss: true", ["--no_norm_pix_loss"], False),
    ],
)
def test_booleans(recipe: Any, text: str, argv: list[str], expected: bool) -> None:
    flags = recipe(text) if text else ()
    assert pretrain_config(*flags, *argv).masking.norm_pix_loss is expected


@pytest.mark.parametrize(
    "text", ["norm_pix_loss: 3", "batch_size: many", "batch_size: [1, 2]", "precision: half"]
)
def test_a_recipe_is_checked_as_the_command_line_is(recipe: Any, text: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        pretrain_config(*recipe(text))
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 3", r"unknown keys 'batch_sise' \(perhaps 'batch_size'\)"),
        ("xyzzy: 3\nbatch-size: 3", r"unknown keys 'xyzzy', 'batch-size' \(perhaps 'batch_size'\)"),
        ("optimization:\n  lr: 1", "unknown keys 'optimization'"),
        ("dry_run: true", "unknown keys 'dry_run'"),
        ("recipe: other.yaml", "unknown keys 'recipe'"),
        ("3: 4", "unknown keys '3'"),
        ("- lr", "expected lines of the form"),
        ("just words", "expected lines of the form"),
        ("lr: [1", "cannot be read"),
        ("!!python/object/apply:os.system ['true']", "cannot be read"),
    ],
)
def test_a_bad_recipe_is_refused_with_a_reason(recipe: Any, text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"--recipe .*recipe\.yaml: {message}"):
        train_config(*recipe(text))


def test_an_absent_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--recipe .*no\.yaml: cannot be read"):
        train_config("--recipe", str(tmp_path / "no.yaml"))


def test_a_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        train_config("--recipe", str(path))


# --- round trip -----------------------------------------------------------------------------------

EVERYTHING = {
    "pretrain": [
        *("--model_name", "tiny", "--input_size", "32", "--num_frames", "8", "--patch_size", "8"),
        *("--tubelet_size", "4", "--mask_ratio", "0.75", "--no_norm_pix_loss"),
        *("--data_dir", "some where/data", "--train_list", "my list.txt", "--sampling_rate", "2"),
        *("--n_worker", "0", "--max_bad_share", "0.5", "--decode_timeout", "9"),
        *("--n_epoch", "3", "--batch_size", "4", "--warmup_lr", "1e-6", "--optimizer", "lion"),
        *("--accumulate", "2", "--lr", "3e-4", "--min_lr", "1e-7", "--warmup_epochs", "0.5"),
        *("--target_fps", "25", "--exact_frames", "--num_sample", "2", "--flip", "0.5"),
        *("--weight_decay", "0.1", "--clip_grad", "1.0", "--accelerator", "cpu"),
        *("--n_device", "2", "--n_node", "3", "--precision", "bf16-mixed", "--dtype", "float32"),
        *("--compile", "on", "--activation_checkpointing", "blocks"),
        *("--strategy", "ddp", "--save_dir", "run one", "--save_frequency", "2"),
        *("--save_minutes", "5", "--rank_timeout", "30", "--keep_every", "7", "--deterministic"),
        *("--seed", "42", "--log_every", "3"),
    ],
    "train": [
        *("--model_name", "tiny", "--pretrained", "--pretrained_name", "MCG-NJU/videomae-base"),
        *("--pretrained_dir", "weights/some name", "--num_classes", "4", "--label_names", "n.txt"),
        *("--label_smoothing", "0.2", "--drop_path_rate", "0.3", "--head_dropout", "0.1"),
        *("--head_init_scale", "1", "--layer_decay", "0.9", "--crop_scale", "0.5", "0.9"),
        *("--flip", "0", "--val_list", "val list.txt", "--views", "2x3", "--merge", "logit"),
        *("--base_lr", "1e-3", "--precision", "16-mixed", "--save_dir", "run two"),
        *("--sampling", "sparse", "--sampling_rate", "8", "--exact_frames"),
        *("--ema_decay", "0.999"),
    ],
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("everything", [True, False])
def test_a_written_recipe_reads_back_to_an_equal_config(
    recipe: Any, name: str, everything: bool
) -> None:
    argv = EVERYTHING[name] if everything else []
    config = parse(CONFIGS[name], argv, prog=name, description="")
    text = to_recipe(config)
    again = parse(CONFIGS[name], recipe(text), prog=name, description="")
    # What belongs to one invocation is not repeated.
    run = dataclasses.replace(again.run, recipe=None)
    assert dataclasses.replace(again, run=run) == config
    assert to_recipe(again) == text
    for once in ("recipe", "dry_run", "resume"):
        assert once not in yaml.safe_load(text)


def test_everything_of_pretraining_really_differs_from_the_defaults() -> None:
    """Else the round trip above shows little: each flag has a value of its own there."""
    config, default = flatten(pretrain_config(*EVERYTHING["pretrain"])), flatten(pretrain_config())
    same = {name for name in config if config[name] == default[name]}
    assert same <= {"base_lr", "val_list", "resume", "recipe", "dry_run", "eval_frequency"}


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_exits_well(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = run_command(name, ["--help"])  # of a group of commands
    except SystemExit as stopped:
        code = stopped.code
    assert code == 0
    told = capsys.readouterr()
    assert "usage:" in told.out
    assert told.err == ""


@pytest.mark.parametrize("name", CONFIGS)
def test_help_explains_each_flag(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every flag stands in the help, in a group, with its own text and its default."""
    monkeypatch.setenv("COLUMNS", "90")  # wide enough for one column of groups only
    with pytest.raises(SystemExit):
        run_command(name, ["--help"])
    out = squeezed(capsys.readouterr().out)
    for group in dataclasses.fields(CONFIGS[name]):
        flags = group.type
        assert isinstance(flags, type)
        for field in dataclasses.fields(flags):
            text = docstrings(flags).get(field.name, "")
            assert len(text) > 15, f"--{field.name} has no text"
            assert f"--{field.name}" in out
            assert squeezed(text) in out, f"the text of --{field.name} is not shown"
    assert out.count("(default:") >= len(list(field_names(CONFIGS[name])))


def squeezed(text: str) -> str:
    """Without frames and white space: where lines break is not the matter."""
    return "".join(text.replace("│", "").split())


def docstrings(flags: type) -> dict[str, str]:
    """The string below each field of a dataclass and of those it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(flags.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = str(text.value.value)
    return found


def test_an_unknown_flag_comes_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_config("--n_epocs", "3")
    assert stopped.value.code == 2
    told = capsys.readouterr()
    assert "--n_epocs" in told.err
    assert "--n_epoch" in told.err.replace("--n_epocs", "")
    assert told.out == ""
