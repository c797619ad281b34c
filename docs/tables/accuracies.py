"""Tables of accuracies: what others measured, and the committed demo."""

from measured import result  # first: it makes the package importable

from kinetics400.commands.report import ROWS, demo_table, demo_verdict


def inherited() -> str:
    """Accuracies that others measured."""
    rows = result("inherited.json")["rows"]
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
    outcome = result("demo/results.json")
    minutes = outcome["seconds"] / 60
    unseen = result("demo_seed1.json")
    top1 = [f"{unseen[name]['top1_acc']:.1f}" for name in ROWS]
    return (
        f"{demo_table(outcome)}\n\n"
        f"{demo_verdict(outcome)} All of it took {minutes:.1f} minutes.\n\n"
        "Classes and settings were chosen with these validation videos in view. On videos never "
        f"looked at before (`--seed 1`) the four rows give {', '.join(top1)} % top-1."
    )
