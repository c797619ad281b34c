"""Whether a GPU's video decoder (NVDEC) is worth a flag: its rate beside that of the CPU's cores.

    python benchmarks/gpu_decode.py benchmarks/results/h200/decode.json

Processes read pretraining clips (16 frames, stride 4) of the same videos, each as it was filmed and
as it is stored, for some seconds; the ways take turns. Two ways use the GPU: FFmpeg, as PyAV's
wheel can, decodes what the layer needs and hands the frames wanted to the host; torchcodec leaves
them on the GPU in RGB, but decodes all frames between them. The crop is left out everywhere. Where
a way cannot be used its row says why; torchcodec wants benchmarks/ffmpeg_libraries.py.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import av
from av.codec.hwaccel import HWAccel

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from kinetics400.bench.videos import make_videos  # noqa: E402 (needs the path)
from kinetics400.data.transcode import EncodeSettings, transcode_video  # noqa: E402

NUM_FRAMES, STRIDE, VIDEOS = 16, 4, 16
CPU, GPU, TORCHCODEC = "CPU cores", "NVDEC", "torchcodec on NVDEC"
DECODERS = (CPU, GPU, TORCHCODEC)
FILMED, STORED = "as filmed", "as stored"


@dataclass(frozen=True)
class Row:
    """One measurement."""

    decoder: str
    videos: str
    processes: int
    repeat: int
    clips_per_sec: float


def read_clip(path: str, place: float, decoder: str, layer: bool) -> int:
    """Decode the frames of one clip; returns how many were wanted."""
    from kinetics400.data import sampling  # brings torch, which children that encode do without

    # The context that torch has made anyway: one of its own would cost more than a clip.
    on_gpu = HWAccel("cuda", allow_software_fallback=False, options={"primary_ctx": "1"})
    with av.open(path, hwaccel=on_gpu if decoder == GPU else None) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if layer:
            stream.codec_context.skip_frame = "BIDIR"
        assert stream.time_base is not None and stream.average_rate is not None
        tick = int(1 / (stream.time_base * stream.average_rate))
        grid = STRIDE if layer else 1
        wanted = sampling.pretraining_frames(stream.frames, NUM_FRAMES, STRIDE, place, grid=grid)
        times = {frame * tick for frame in wanted}
        container.seek(min(times), stream=stream)
        found = 0
        for frame in container.decode(stream):
            if frame.pts in times:
                frame.to_ndarray(format="rgb24")
                found += 1
            if frame.pts is not None and frame.pts >= max(times):
                break
    if found != len(times):
        raise RuntimeError(f"{path}: {found} of {len(times)} frames")
    return found


def read_clip_into_gpu(path: str, place: float, layer: bool, device: str = "cuda") -> int:
    """The same clip by torchcodec, into the memory of a device."""
    from torchcodec.decoders import VideoDecoder

    from kinetics400.data import sampling

    decoder = VideoDecoder(path, device=device, seek_mode="approximate", num_ffmpeg_threads=1)
    grid = STRIDE if layer else 1
    wanted = sampling.pretraining_frames(len(decoder), NUM_FRAMES, STRIDE, place, grid=grid)
    return len(decoder.get_frames_at(wanted).data)


def read_for(seconds: float, paths: list[str], seed: int, decoder: str, layer: bool) -> float:
    """Clips per second of this process, from its second clip on."""
    read: Callable[[str, float], int]
    if decoder == TORCHCODEC:
        read = partial(read_clip_into_gpu, layer=layer)
    else:
        read = partial(read_clip, decoder=decoder, layer=layer)
    if decoder != CPU:
        import torch

        torch.zeros(1, device="cuda")
    draw = random.Random(seed)
    read(paths[0], 0.5)
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        read(paths[(seed + count) % len(paths)], draw.random())
        count += 1
    return count / spent


def measure(args: argparse.Namespace, folder: Path) -> tuple[list[Row], dict[str, str]]:
    """All rows, and why some are missing."""
    filmed = make_videos(folder, VIDEOS)
    stored = [f"{path[:-4]}_stored.mp4" for path in filmed]
    for path, target in zip(filmed, stored, strict=True):
        transcode_video(path, target, EncodeSettings())
    ways = [(decoder, kind) for kind in (FILMED, STORED) for decoder in DECODERS]
    rows, missing = [], {}
    processes = dict.fromkeys(DECODERS, args.gpu_processes) | {CPU: os.cpu_count() or 1}
    for repeat in range(args.repeats):
        for decoder, kind in ways:
            if decoder in missing:
                continue
            paths, n = (filmed if kind == FILMED else stored), processes[decoder]
            spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
            with ProcessPoolExecutor(n, mp_context=spawn) as pool:
                work = [
                    pool.submit(read_for, args.seconds, paths, rank, decoder, kind == STORED)
                    for rank in range(n)
                ]
                try:
                    rate = sum(part.result() for part in work)
                except (RuntimeError, ImportError, AssertionError, av.error.FFmpegError) as error:
                    missing[decoder] = f"{type(error).__name__}: {error}".splitlines()[0]
                    continue
            rows.append(Row(decoder, kind, n, repeat, rate))
            print(f"{decoder}, {kind}: {rate:.1f} clips/s in {n} processes", flush=True)
    return rows, missing


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gpu_processes", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, missing = measure(args, Path(folder))
    rates = {
        f"{decoder}, {kind}": statistics.median(own)
        for decoder in DECODERS
        for kind in (FILMED, STORED)
        if (own := [r.clips_per_sec for r in rows if (r.decoder, r.videos) == (decoder, kind)])
    }
    result = {
        "benchmark": "gpu_decode",
        "clips_per_sec": rates,
        "missing": missing,
        "versions": {"av": av.__version__, "ffmpeg": av.ffmpeg_version_info},
        "rows": [asdict(row) for row in rows],
    }
    args.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({"clips_per_sec": rates, "missing": missing}, indent=2))


if __name__ == "__main__":
    main()
