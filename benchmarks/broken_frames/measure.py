"""Measure what the doctor finds of broken pictures, and at what cost: `make broken-proof`.

With `--clips DIR` the same is done to the first frames of the videos in a folder, and these videos
themselves are examined as they are.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import truth
from damage import IN_PACKETS
from sets import N_FRAMES, Case, filmed, generated

from kinetics400.bench.videos import find_videos
from kinetics400.data.broken import BrokenMeter
from kinetics400.data.storage import write_atomic
from kinetics400.data.verify import Refused, verify_video

SEED, N_SOURCES = 2, 24
OVERLAP = 0.5  # of the span that is reported and the true one: intersection over union


def reported(path: str) -> tuple[list[tuple[int, int]], dict[str, float]]:
    """The spans that the doctor names, and seconds of CPU for decoding without and with it."""
    start = time.process_time()
    verdict = verify_video(path)
    decoding = time.process_time() - start
    assert not isinstance(verdict, Refused), (path, verdict)
    start, meter = time.process_time(), BrokenMeter()
    verify_video(path, meter.add)
    spans = meter.finish()
    return spans, {"decoding": decoding, "with the detector": time.process_time() - start}


def overlap(one: tuple[int, int], two: tuple[int, int]) -> float:
    """Intersection over union of two spans of frames.

    >>> overlap((10, 19), (15, 24))
    0.3333333333333333
    """
    common = min(one[1], two[1]) - max(one[0], two[0]) + 1
    return max(common, 0) / (max(one[1], two[1]) - min(one[0], two[0]) + 1)


def judge(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """Of each case: its kind, whether it is damaged, and whether the verdict is right."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            path = Path(folder) / "video.mp4"
            path.write_bytes(case.video)
            spans, seconds = reported(str(path))
            shares = [overlap(span, case.span) for span in spans] if case.span else []
            row = {"kind": case.kind, "damaged": case.span is not None}
            row |= {"named": max(shares, default=0) > 0, "found": max(shares, default=0) >= OVERLAP}
            rows.append(row | {"alarms": len(spans), "seconds": seconds})
    return rows


def judge_generated(number: int) -> list[dict[str, Any]]:
    """In a process of its own."""
    return judge(generated(SEED, number))


def judge_filmed(paths: tuple[str, str]) -> list[dict[str, Any]]:
    """In a process of its own."""
    return judge(filmed(*paths))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by kind."""
    damaged = [row for row in rows if row["damaged"]]
    whole = [row for row in rows if not row["damaged"]]
    named, found, alarms = (
        [row["kind"] for row in rows if row[what]] for what in ("named", "found", "alarms")
    )
    ways = ("decoding", "with the detector")
    return {
        "damaged": {
            kind: {"videos": number, "named": named.count(kind), "found": found.count(kind)}
            for kind, number in Counter(row["kind"] for row in damaged).items()
        },
        "whole": {
            kind: {"videos": number, "alarms": alarms.count(kind)}
            for kind, number in Counter(row["kind"] for row in whole).items()
        },
        "seconds": {way: round(sum(row["seconds"][way] for row in rows), 2) for way in ways},
    }


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("--clips", type=Path, help="folder of videos, whole for their first frames")
    parser.add_argument("--n_sources", type=int, default=N_SOURCES)
    args = parser.parse_args()
    with ProcessPoolExecutor(2) as pool:
        rows = [row for part in pool.map(judge_generated, range(args.n_sources)) for row in part]
        result: dict[str, Any] = {
            "seed": SEED,
            "sources": args.n_sources,
            "frames": N_FRAMES,
            "visible": {
                "far_grey_levels": truth.FAR,
                "share": truth.SHARE,
                "least_frames": truth.LEAST,
                "reach_pixels": 2 * truth.REACH,
            },
            "overlap": OVERLAP,
            "in_packets": list(IN_PACKETS),
            "generated": summary(rows),
        }
        if args.clips is not None:
            paths = find_videos(args.clips)
            pairs = list(zip(paths, paths[1:] + paths[:1], strict=True))
            parts = [part for part in pool.map(judge_filmed, pairs) if part]
            as_they_are = [len(reported(path)[0]) for path in paths]
            result["clips"] = {
                "sources": len(parts),
                **summary([row for part in parts for row in part]),
                "as_they_are": {"videos": len(paths), "spans_named": sum(as_they_are)},
            }
    write_atomic(args.target, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
