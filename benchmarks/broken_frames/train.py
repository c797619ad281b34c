"""Train the network of kinetics400/data/torn.py: `make broken-train FOOTAGE=DIR`, an hour.

The weights that the package holds were trained for 27 minutes on 11,119 triples by an earlier form
of this script, which knew damage in MPEG-4, MPEG-2 and FLV as well, and more kinds of lettering.
This form has been run for twelve steps, to see that it runs.
"""

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from footage import Footage
from network import Net, inputs, save
from torch.nn import functional
from triples import UNKNOWN, Triple, draw

from kinetics400.data.torn import WEIGHTS

SEED, N_FILMS, N_STEPS = 1, 3000, 6500
BATCH, TORN_SHARE, CROP = 32, 5 / 12, 128
RATE, WARM_UP, DECAY = 2.5e-3, 60, 0.02
TORN_WEIGHT, PICTURE_WEIGHT, TOP = 1.5, 0.5, 0.25


def collected(folder: Path, number: int) -> list[Triple]:
    """The triples of one film, in a process of its own."""
    return list(draw(np.random.default_rng((SEED, number)), Footage(folder)))


def batches(rng: np.random.Generator, triples: list[Triple]) -> Iterator[tuple]:
    """Pictures (B, 3, 6, H/2, W/2) and labels (B, H/16, W/16), varied."""
    is_torn = np.array([(labels == 1).mean() > 0.02 for _, _, labels in triples])
    torn, whole = np.flatnonzero(is_torn), np.flatnonzero(~is_torn)
    number = round(BATCH * TORN_SHARE)
    while True:
        picked = [*rng.choice(torn, number), *rng.choice(whole, BATCH - number)]
        height, width = triples[0][0].shape[1:]
        top, left = (int(rng.integers(0, (side - CROP) // 16 + 1)) * 16 for side in (height, width))
        rows, columns = slice(top, top + CROP), slice(left, left + CROP)
        half = slice(top // 2, (top + CROP) // 2), slice(left // 2, (left + CROP) // 2)
        cells = slice(top // 16, (top + CROP) // 16), slice(left // 16, (left + CROP) // 16)
        luma = np.stack([triples[at][0][:, rows, columns] for at in picked])
        chroma = np.stack([triples[at][1][:, :, *half] for at in picked])
        labels = np.stack([triples[at][2][cells] for at in picked])
        for axis in (1, 2):
            if rng.random() < 0.5:
                luma, chroma = np.flip(luma, axis + 1), np.flip(chroma, axis + 2)
                labels = np.flip(labels, axis)
        if rng.random() < 0.5:  # before and after change places
            luma, chroma = luma[:, ::-1], chroma[:, ::-1]
        x = inputs(
            np.ascontiguousarray(luma).reshape(-1, CROP, CROP),
            np.ascontiguousarray(chroma).reshape(-1, 2, CROP // 2, CROP // 2),
        ).unflatten(0, (-1, 3))
        light = torch.randn(BATCH, 2, 1, 1, 1, 1) * 0.25
        colour = torch.randn(BATCH, 1, 2, 1, 1) * 0.15
        x = torch.cat([x[:, :, :4] * light[:, 0].exp() + light[:, 1], x[:, :, 4:] + colour], 2)
        yield x, torch.from_numpy(np.ascontiguousarray(labels))


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of the cells, and of the mean of the TOP share of each picture."""
    torn = (labels == 1).float()
    weight = (labels != UNKNOWN) * torch.where(labels == 1, TORN_WEIGHT, 1.0)
    cells = functional.binary_cross_entropy_with_logits(logits, torn, weight, reduction="none")
    cells = cells.sum((1, 2)) / weight.sum((1, 2)).clamp(min=8)
    share = torn.mean((1, 2))
    top = logits.flatten(1).topk(int(logits[0].numel() * TOP), 1)[0].mean(1)
    pictures = functional.binary_cross_entropy_with_logits(
        top, (share > 0).float(), ((share == 0) | (share > 0.2)).float()
    )
    return cells.mean() + PICTURE_WEIGHT * pictures


def main() -> None:
    """Make the triples, train, write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("footage", type=Path, help="folder of videos and photographs")
    parser.add_argument("target", type=Path, nargs="?", default=WEIGHTS)
    parser.add_argument("--n_films", type=int, default=N_FILMS)
    parser.add_argument("--n_steps", type=int, default=N_STEPS)
    args = parser.parse_args()
    with ProcessPoolExecutor(2) as pool:
        parts = pool.map(partial(collected, args.footage), range(args.n_films), chunksize=4)
        triples = [triple for part in parts for triple in part]
    n_torn = sum(bool((labels == 1).any()) for _, _, labels in triples)
    print(f"{len(triples):,} triples, {n_torn:,} of them torn")
    torch.manual_seed(SEED)
    net = Net().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
    varied, start = batches(np.random.default_rng(SEED), triples), time.monotonic()
    for step in range(args.n_steps):
        done = step / args.n_steps
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARM_UP, 1) * (0.5 + 0.5 * np.cos(np.pi * done))
        x, labels = next(varied)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x)
        loss = loss_of(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        if step % 100 == 0:
            print(
                f"step {step}: loss {loss.item():.3f}, {time.monotonic() - start:.0f} s", flush=True
            )
    save(net.eval(), args.target)


if __name__ == "__main__":
    main()
