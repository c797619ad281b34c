"""Draw docs/pyramid.svg and docs/curves.svg: `make docs`."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

GROUP = 17  # frames drawn: two minigops more would only repeat
KINDS = {"I": "#1b4965", "P": "#3a86c8", "B": "#f4a259", "b": "#d9d9d9"}
ROWS = {"I": 3, "P": 3, "B": 2, "b": 1}
LAYERS = ((3, "layer 4: I and P"), (2, "layer 2: and B"), (1, "layer 1: all frames"))


def kind(frame: int) -> str:
    """The type of a frame in a whole group."""
    if frame == 0:
        return "I"
    return "P" if frame % 4 == 0 else "B" if frame % 2 == 0 else "b"


def references(frame: int) -> list[int]:
    """The frames that a frame refers to."""
    step = {"I": 0, "P": 4, "B": 2, "b": 1}[kind(frame)]
    if step == 0:
        return []
    return [frame - 4] if step == 4 else [frame - step, frame + step]


def draw_pyramid(path: Path) -> None:
    """Draw the first frames of a group, by layer, with what refers to what."""
    figure, axes = plt.subplots(figsize=(9, 2.9))
    for frame in range(GROUP):
        for other in references(frame):
            axes.annotate(
                "",
                xy=(other, ROWS[kind(other)] - (0.0 if kind(frame) == "P" else 0.22)),
                xytext=(frame, ROWS[kind(frame)] + (0.0 if kind(frame) == "P" else 0.22)),
                arrowprops={
                    "arrowstyle": "->",
                    "color": "#888888",
                    "linewidth": 0.8,
                    "shrinkA": 11 if kind(frame) == "P" else 0,
                    "shrinkB": 11 if kind(frame) == "P" else 0,
                },
            )
    for frame in range(GROUP):
        axes.text(
            frame,
            ROWS[kind(frame)],
            f"{kind(frame)}{frame}",
            ha="center",
            va="center",
            fontsize=8,
            color="black" if kind(frame) in "Bb" else "white",
            bbox={"boxstyle": "round,pad=0.35", "facecolor": KINDS[kind(frame)], "linewidth": 0},
        )
    for row, text in LAYERS:
        axes.text(GROUP - 0.3, row, text, va="center", fontsize=9)
    axes.set_xlim(-0.7, GROUP + 3.2)
    axes.set_ylim(0.5, 3.6)
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def draw_curves(path: Path, measured: Path) -> None:
    """Draw the losses of both loops, and below them the relative gap."""
    curves = json.loads(measured.read_text(encoding="utf-8"))["curves"]
    figure, axes = plt.subplots(2, len(curves), figsize=(9, 4), sharex=True, height_ratios=(2, 1))
    for (above, below), curve in zip(axes.T, curves, strict=True):
        ours, theirs = curve["ours"], curve["reference"]
        above.plot(theirs, color="#f4a259", linewidth=3, label="plain loop, transformers")
        above.plot(ours, color="#1b4965", linewidth=0.8, label="ours")
        above.set_title(curve["task"], fontsize=10)
        gaps = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
        below.semilogy(gaps, color="#888888", linewidth=0.8)
        below.set_xlabel("step")
    axes[0, 0].set_ylabel("loss")
    axes[0, 0].legend(fontsize=8, frameon=False)
    axes[1, 0].set_ylabel("relative gap")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    DOCS = Path(__file__).parent
    plt.rcParams.update({"svg.hashsalt": "kinetics400", "font.family": "DejaVu Sans"})
    draw_pyramid(DOCS / "pyramid.svg")
    draw_curves(DOCS / "curves.svg", DOCS.parent / "results" / "fidelity_curves.json")
