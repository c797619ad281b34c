"""Results as pages: tables and plots made from a run's files, never typed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinetics400.engine.log import read_metrics

ROWS = {
    "finetuned": "pretrained, then finetuned",
    "scratch": "same finetuning from scratch",
    "shuffled_frames": "finetuned model, frames in random order",
    "repeated_frame": "finetuned model, one frame repeated",
}


def demo_table(results: Mapping[str, Any]) -> str:
    """The demo's accuracies as a Markdown table."""
    lines = ["| | top-1 | top-5 |", "|---|---|---|"]
    for name, text in ROWS.items():
        top1, top5 = results[name]["top1_acc"], results[name]["top5_acc"]
        lines.append(f"| {text} | {top1:.1f} % | {top5:.1f} % |")
    chance = 100 / results["n_classes"]
    lines.append(f"| chance | {chance:.1f} % | {5 * chance:.1f} % |")
    return "\n".join(lines)


def demo_verdict(results: Mapping[str, Any]) -> str:
    """Whether pretraining paid, in one honest sentence."""
    top1 = [results[name]["top1_acc"] / 100 for name in ("finetuned", "scratch")]
    gain = 100 * (top1[0] - top1[1])
    # Two standard deviations of the difference of two shares.
    noise = 100 * 2 * (sum(p * (1 - p) for p in top1) / results["n_val_videos"]) ** 0.5
    if abs(gain) <= noise:
        return (
            f"Pretraining made no difference to the result here: {gain:+.1f} points, where "
            f"{results['n_val_videos']} videos tell apart {noise:.1f}."
        )
    verb = "beat" if gain > 0 else "lost to"
    return f"Pretraining {verb} training from scratch by {abs(gain):.1f} points."


def demo_page(results: Mapping[str, Any]) -> str:
    """README.md of the demo's results."""
    first, last = results["pretrain_loss_first_epoch"], results["pretrain_loss_last_epoch"]
    shuffled, repeated = (
        results[name]["top1_acc"] for name in ("shuffled_frames", "repeated_frame")
    )
    return f"""# Demo

Written by `make demo`: {results["n_train_videos"]} training videos and {results["n_val_videos"]}
validation videos of {results["n_classes"]} motion classes, drawn and encoded here; a tiny VideoMAE
on the CPU; {results["n_views"]} views per video; {results["seconds"]:.0f} seconds in all.

{demo_table(results)}

{demo_verdict(results)} The masked-patch loss fell from {first:.3f} (first epoch) to {last:.3f}
(last epoch), by {100 * (1 - last / first):.0f} %. The classes are motions: with its frames in
random order a video is named right in {shuffled:.1f} % of cases, with one frame repeated in
{repeated:.1f} %, where guessing gives {100 / results["n_classes"]:.1f} %.

The demo's classes and settings were chosen with the validation videos of seed 0, the default, in
view; those of another seed (`kinetics400 demo --seed 1`) are unseen.

![Losses of pretraining and finetuning](loss_curve.png)

`results.json` holds the numbers; each run's `config.yaml` repeats it with `--recipe`.
"""


def plot_losses(
    pretraining: Mapping[str, Path], finetuning: Mapping[str, Path], target: Path
) -> None:
    """Draw the losses of metrics files over epochs, pretraining left and finetuning right."""
    import matplotlib  # heavy, and only this function draws

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, title, runs in zip(
        axes, ("pretraining", "finetuning"), (pretraining, finetuning), strict=True
    ):
        for name, path in runs.items():
            rows = [row for row in read_metrics(path) if "loss" in row]
            axis.plot([row["epoch"] for row in rows], [row["loss"] for row in rows], label=name)
        axis.set(title=title, xlabel="epoch", ylabel="loss")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(target, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
