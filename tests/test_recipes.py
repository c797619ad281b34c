"""The recipes against the papers' and scripts' numbers, typed here by hand.

Steps are of Kinetics-400's 240,436 training videos (168,913 of Something-Something V2, 9,537 of
UCF101), the last incomplete batch dropped.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinetics400.__main__ import run_command
from kinetics400.config.finetuning import TrainConfig
from kinetics400.config.parse import field_names, flatten, parse
from kinetics400.config.pretraining import PretrainConfig

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
CONFIGS = {"pretrain": PretrainConfig, "train": TrainConfig}
VIDEOS = {"ssv2": 168_913, "ucf101": 9_537}

# recipe: epochs, global batch, largest rate, last rate, steps of warm-up, steps in all
PRETRAINING = {
    "videomae_small_pretrain": (1600, 1024, 6e-4, 4e-5, 9_360, 374_400),
    "videomae_base_pretrain": (800, 2048, 1.2e-3, 8e-5, 4_680, 93_600),
    "videomae_base_pretrain_1600": (1600, 2048, 1.2e-3, 8e-5, 4_680, 187_200),
    "videomae_large_pretrain": (1600, 512, 3e-4, 2e-5, 18_760, 750_400),
    "videomae_huge_pretrain": (1600, 1024, 6e-4, 4e-5, 9_360, 374_400),
    "videomae_base_pretrain_seed": (400, 512, 5e-4, 2e-5, 18_760, 187_600),
    "videomae_base_pretrain_ssv2": (2400, 2048, 1.2e-3, 8e-5, 3_280, 196_800),
    "videomae_base_pretrain_ucf101": (3200, 192, 2.25e-4, 7.5e-6, 1_960, 156_800),
    "avion_base_pretrain": (800, 256, 1.5e-4, 1e-5, 37_560, 751_200),
}
FINETUNING = {
    "videomae_small_finetune": (150, 384, 7.5e-4, 1.5e-6, 3_130, 93_900),
    "videomae_base_finetune": (100, 512, 2e-3, 2e-6, 2_345, 46_900),
    "videomae_base_finetune_1600": (75, 384, 7.5e-4, 1.5e-6, 3_130, 46_950),
    "videomae_large_finetune": (35, 128, 1e-3, 5e-7, 9_390, 65_730),
    "videomae_huge_finetune": (50, 512, 2e-3, 2e-5, 2_345, 23_450),
    "videomae_base_finetune_seed": (100, 256, 3e-4, 1e-6, 4_695, 93_900),
    "videomae_base_finetune_ssv2": (30, 384, 7.5e-4, 1.5e-6, 2_195, 13_170),
    "videomae_base_finetune_ucf101": (100, 128, 2.5e-4, 5e-6, 370, 7_400),
    "videomaev2_base_finetune": (90, 512, 1.4e-3, 2e-6, 2_345, 42_210),
    "videomaev2_large_finetune": (35, 192, 1.5e-3, 7.5e-7, 6_260, 43_820),
    "avion_base_finetune": (100, 256, 1.5e-3, 1e-6, 4_695, 93_900),
}
# What differs from most: clips of each video, drop path, dropout, decay per layer, classes, views.
USUAL = (2, 0.1, 0.0, 0.75, 400, "5x3")
UNUSUAL = {
    "videomae_base_finetune": (1, 0.1, 0.0, 0.75, 400, "5x3"),
    "videomae_huge_finetune": (2, 0.2, 0.5, 0.75, 400, "5x3"),
    "videomae_base_finetune_seed": (1, 0.1, 0.0, 0.75, 400, "5x3"),
    "videomae_base_finetune_ssv2": (2, 0.1, 0.0, 0.75, 174, "2x3"),
    "videomae_base_finetune_ucf101": (2, 0.2, 0.5, 0.7, 101, "5x3"),
    "videomaev2_large_finetune": (2, 0.2, 0.0, 0.75, 400, "5x3"),
    "avion_base_finetune": (1, 0.1, 0.0, 0.75, 400, "5x3"),
}
SMOKE = {"videomae_tiny_pretrain_smoke", "videomae_tiny_finetune_smoke"}
# A twin and the keys in which it may differ.
TWINS = {
    **{
        f"videomae_{size}_{job}_fast": {"exact_frames", "official_augment", "precision"}
        for size in ("small", "base", "large", "huge")
        for job in ("pretrain", "finetune")
    },
    "videomae_base_pretrain_1gpu": {"n_device", "accumulate"},
    "videomae_base_finetune_1gpu": {"n_device", "accumulate"},
}
# width, depth, decoder's width and depth, without heads: those have no weights
SIZES = {
    "small": (384, 12, 192, 4),
    "base": (768, 12, 384, 4),
    "large": (1024, 24, 512, 12),
    "huge": (1280, 32, 640, 12),
}
# Flags that belong to a machine or a person, not to what is learned.
PERSONAL = {
    *("recipe", "dry_run", "resume", "data_dir", "train_list", "val_list", "pretrained_dir"),
    *("pretrained_name", "save_dir", "n_worker", "decode_timeout", "max_bad_share", "label_names"),
    *("accelerator", "strategy", "dtype", "seed", "log_every", "eval_frequency", "target_fps"),
    *("clip_grad", "ema_decay", "sampling_rate", "save_minutes"),
    *("compile", "activation_checkpointing", "n_node"),
    *("rank_timeout", "keep_every", "deterministic", "pos_embed", "resize_patch_embed"),
}


def command(name: str) -> str:
    return "pretrain" if "_pretrain" in name else "train"


def content(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))


def exact(twin: str) -> str:
    return twin.removesuffix("_fast").removesuffix("_1gpu")


def block(width: int) -> int:
    """Weights of a transformer block: four and eight width², biases but for the keys, two norms."""
    return 12 * width**2 + (2 + 1 + 4 + 1 + 2 * 2) * width


def parameters(name: str, classes: int = 400) -> int:
    size = name.split("_")[1]
    width, depth, narrow, decoder_depth = SIZES[size]
    encoder = 1536 * width + width + depth * block(width)
    if command(name) == "train":
        return encoder + 2 * width + classes * (width + 1)
    decoder = width * narrow + narrow + decoder_depth * block(narrow)
    return encoder + 2 * width + decoder + 2 * narrow + 1536 * (narrow + 1)


def dry_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *flags: str
) -> dict[str, Any]:
    recipe = ROOT / "recipes" / f"{name}.yaml"
    argv = ["--recipe", str(recipe), "--data_dir", str(tmp_path), "--dry_run", *flags]
    assert run_command(command(name), argv) == 0
    return json.loads(capsys.readouterr().out)


def list_of(num_videos: int, path: Path) -> str:
    path.write_text("".join(f"{i}.mp4 0\n" for i in range(num_videos)))
    return str(path)


def test_every_recipe_is_checked_here() -> None:
    assert {path.stem for path in RECIPES} == {*PRETRAINING, *FINETUNING, *TWINS, *SMOKE}
    assert len(RECIPES) == 32


@pytest.mark.parametrize("name", [*PRETRAINING, *FINETUNING, *TWINS])
def test_the_plan_is_the_published_one(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = name.rsplit("_", 1)[1]
    flags = []
    if data in VIDEOS:
        flags = ["--train_list", list_of(VIDEOS[data], tmp_path / "list.txt")]
    plan = dry_run(name, tmp_path, capsys, *flags)
    epochs, batch, peak, final, warmup, total = {**PRETRAINING, **FINETUNING}[exact(name)]
    assert (plan["n_epoch"], plan["global_batch_size"]) == (epochs, batch)
    assert (plan["warmup_steps"], plan["total_steps"]) == (warmup, total)
    assert plan["peak_lr"] == pytest.approx(peak, rel=1e-12)
    assert plan["final_lr"] == pytest.approx(final, rel=1e-12)
    assert plan["start_lr"] == (1e-6 if name.startswith("avion") else 0)
    assert plan["optimizer"] == ("lion" if name == "avion_base_pretrain" else "adamw")
    classes = UNUSUAL.get(exact(name), USUAL)[4]
    assert plan["n_parameters"] == parameters(name, classes)
    visible = {"videomae_base_pretrain_ucf101": 8 * 49}.get(name, 8 * 20)
    assert plan["tokens_visible"] == (visible if command(name) == "pretrain" else 1568)
    assert plan["param_groups"] == (
        2 if command(name) == "pretrain" else 2 * (SIZES[name.split("_")[1]][1] + 2)
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_formula_gives_the_published_sizes(size: str) -> None:
    """Millions of parameters in MODEL_ZOO.md."""
    millions = {"small": 22, "base": 87, "large": 305, "huge": 633}[size]
    assert parameters(f"videomae_{size}_finetune") / 1e6 == pytest.approx(millions, abs=1.5)


@pytest.mark.parametrize("name", [*FINETUNING, *(t for t in TWINS if command(t) == "train")])
def test_finetuning_is_regularised_as_published(name: str) -> None:
    recipe = content(name)
    repeats, drop_path, dropout, layer_decay, classes, views = UNUSUAL.get(exact(name), USUAL)
    assert (recipe["num_sample"], recipe["drop_path_rate"]) == (repeats, drop_path)
    assert (recipe["head_dropout"], recipe["layer_decay"]) == (dropout, layer_decay)
    assert (recipe["num_classes"], recipe["views"], recipe["merge"]) == (classes, views, "prob")
    ssv2 = name.endswith("ssv2")
    assert recipe["sampling"] == ("sparse" if ssv2 else "dense")
    assert recipe.get("sampling_rate") == (None if ssv2 else 4)
    assert recipe["flip"] == (0 if ssv2 else 0.5)
    same = {
        **{"label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "mixup_prob": 1.0},
        **{"mixup_switch_prob": 0.5, "mixup_mode": "batch", "reprob": 0.25},
        **{"auto_augment": "rand-m7-n4-mstd0.5-inc1", "crop_scale": [0.08, 1.0]},
        **{"weight_decay": 0.05, "warmup_epochs": 5, "head_init_scale": 0.001},
        **{"input_size": 224, "num_frames": 16, "patch_size": 16, "tubelet_size": 2},
    }
    assert {key: recipe[key] for key in same} == same


@pytest.mark.parametrize("name", [*PRETRAINING, *(t for t in TWINS if command(t) == "pretrain")])
def test_pretraining_sees_what_is_published(name: str) -> None:
    recipe = content(name)
    same = {
        **{"mask_ratio": 0.75 if name.endswith("ucf101") else 0.9, "norm_pix_loss": True},
        **{"sampling_rate": 2 if name.endswith("ssv2") else 4, "num_sample": 1},
        **{"flip": 0.5 if name.startswith("avion") else 0, "weight_decay": 0.05},
        **{"input_size": 224, "num_frames": 16, "patch_size": 16, "tubelet_size": 2},
        **{"warmup_epochs": 40},
    }
    assert {key: recipe[key] for key in same} == same


@pytest.mark.parametrize("name", [*PRETRAINING, *FINETUNING])
def test_published_results_come_from_the_published_frames(name: str) -> None:
    """Only the run that this project starts from may take the cheap ones: it has no such rule."""
    recipe = content(name)
    is_exact = not name.endswith("seed")
    assert recipe["exact_frames"] is is_exact
    assert recipe.get("official_augment", is_exact) is is_exact


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_differs_only_in_what_makes_it_one(name: str) -> None:
    ours, theirs = content(name), content(exact(name))
    assert ours.keys() == theirs.keys()
    differs = {key for key in ours if ours[key] != theirs[key]}
    expected = TWINS[name] & ours.keys()
    assert differs == expected
    if name.endswith("_fast"):
        assert not ours["exact_frames"] and not ours.get("official_augment")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_readable_alone(path: Path) -> None:
    """It states every flag that shapes what is learned, and its source."""
    recipe = content(path.stem)
    missing = set(field_names(CONFIGS[command(path.stem)])) - PERSONAL - recipe.keys()
    if path.stem in SMOKE or path.stem.endswith("seed"):
        missing -= {"base_lr", "exact_frames", "mixup_prob", "mixup_switch_prob", "mixup_mode"}
    assert missing <= {"lr"}
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("# ") for line in header.splitlines())
    says = {
        "smoke": "No published counterpart",
        "fast": "No accuracy is published for it",
        "1gpu": "Published (top-1 / top-5):",
        "seed": "Inherited (top-1 / top-5): 78.64 / 93.65",
    }
    last = path.stem.rsplit("_", 1)[1]
    fallback = "No accuracy is published" if "videomaev2" in path.stem else "Published (top-1"
    assert says.get(last, fallback) in header
    assert re.search("Source: |As videomae_|kinetics400 demo", header)


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("videomae_base_pretrain_seed", "python -m pretraining "),
        ("videomae_base_finetune_seed", "python -m train "),
    ],
)
def test_the_seeds_recipe_is_the_promised_command(name: str, promised: str) -> None:
    """All that the command says; what it leaves open has the value that unset flags take."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in readme if line.startswith(promised))
    config = CONFIGS[command(name)]
    recipe = ["--recipe", str(ROOT / "recipes" / f"{name}.yaml")]
    ours = flatten(parse(config, recipe, prog="", description=""))
    theirs = flatten(parse(config, shlex.split(line)[3:], prog="", description=""))
    differs = {key for key in ours if ours[key] != theirs[key]} - {"recipe"}
    assert differs <= {"min_lr", "warmup_epochs", "drop_path_rate", "head_dropout"}
    assert all(theirs[key] is None for key in differs)


def test_the_smoke_recipes_run(library: Path, tmp_path: Path) -> None:
    """On a small dataset of their kind."""
    weights, save_dir = str(tmp_path / "pretrained"), str(tmp_path / "finetuned")
    for name, flags in (
        ("videomae_tiny_pretrain_smoke", ["--save_dir", weights, "--batch_size", "8"]),
        ("videomae_tiny_finetune_smoke", ["--save_dir", save_dir, "--pretrained_dir", weights]),
    ):
        recipe = ["--recipe", str(ROOT / "recipes" / f"{name}.yaml")]
        data = ["--data_dir", str(library), "--n_worker", "0"]
        assert run_command(command(name), [*recipe, *data, *flags]) == 0
    assert (tmp_path / "finetuned" / "results.json").exists()
