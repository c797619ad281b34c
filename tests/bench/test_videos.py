from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from kinetics400.bench import videos
from kinetics400.bench.videos import SCENES, VideoFacts, describe, film, find_videos, make_video
from kinetics400.data.isolation import Result
from kinetics400.errors import InputError


def test_made_videos_look_like_kinetics_from_outside(tmp_path: Path) -> None:
    path = str(tmp_path / "video.mp4")
    make_video(path, SCENES[0], seed=0, num_frames=60)
    facts = describe(path)
    assert (facts.codec, facts.width, facts.height, facts.fps) == ("h264", 340, 256, 30.0)
    assert facts.num_frames == 60
    assert 300 < facts.kbit_per_sec < 1500
    with av.open(path) as container:
        kinds = {int(frame.pict_type) for frame in container.decode(video=0)}
    assert kinds == {1, 2, 3}  # I, P, B


def test_made_videos_have_a_key_frame_every_250(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simple(scene: videos.Scene, seed: int, num_frames: int) -> Iterator[av.VideoFrame]:
        for number in range(num_frames):
            grey = np.full((videos.HEIGHT * 3 // 2, videos.WIDTH), 100, np.uint8)
            grey[: number % 60] = 110
            yield av.VideoFrame.from_ndarray(grey, format="yuv420p")

    monkeypatch.setattr(videos, "film", simple)
    path = str(tmp_path / "video.mp4")
    make_video(path, SCENES[0], seed=0, num_frames=255)
    assert describe(path).keyframes == [0, 250]


def test_the_same_seed_makes_the_same_pictures() -> None:
    first, again, other = (_lumas(SCENES[1], 3, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_the_same_pictures_make_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AVX-512, x264 needs to be told so, and some 100 frames to show it."""
    pictures = list(film(SCENES[1], 0, 100))

    def again(*arguments: object) -> Iterator[av.VideoFrame]:
        for picture in pictures:
            picture.pts = None
            yield picture

    monkeypatch.setattr(videos, "film", again)
    for name in "ab":
        make_video(str(tmp_path / name) + ".mp4", SCENES[1], seed=0, num_frames=100)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def _lumas(scene: videos.Scene, num_frames: int, seed: int = 0) -> np.ndarray:
    frames = [frame.to_ndarray()[: videos.HEIGHT] for frame in film(scene, seed, num_frames)]
    return np.stack(frames).astype(float)


def _change(lumas: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each frame to the one before."""
    return np.abs(np.diff(lumas, axis=0)).mean((1, 2))


STILL = videos.Scene(pan=0, shake=0, zoom=0, sway=0, num_objects=0, contrast=20, grain=0)


@pytest.mark.parametrize(
    "moves",
    [{"pan": 1.0}, {"shake": 5.0}, {"zoom": 0.3}, {"sway": 5.0}, {"num_objects": 2}, {"grain": 2}],
)
def test_every_ingredient_of_a_scene_moves_the_picture(moves: dict[str, float]) -> None:
    assert _change(_lumas(replace(STILL, **moves), 6)).max() > 0.1


def test_a_scene_without_ingredients_stands_still() -> None:
    assert _change(_lumas(STILL, 3)).max() == 0


def test_a_cut_changes_the_whole_picture_at_once() -> None:
    changes = _change(_lumas(replace(STILL, pan=0.5, cut=4), 8))
    assert np.argmax(changes) == 3  # from frame 3 to frame 4
    assert changes[3] > 5 * np.delete(changes, 3).max()


def test_videos_of_a_folder_are_found_in_order(tmp_path: Path) -> None:
    for stem in "hcbaged":
        (tmp_path / f"{stem}.mp4").touch()
    for name in ("notes.txt", "f.MKV"):
        (tmp_path / name).touch()
    names = [Path(path).stem for path in find_videos(tmp_path)]
    assert names == list("abcdefgh")
    assert all(Path(path).parent == tmp_path for path in find_videos(tmp_path))


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"--videos .* holds no video"):
        find_videos(tmp_path)
    for absent in (tmp_path / "none", tmp_path / "notes.txt"):
        with pytest.raises(InputError, match=r"--videos .* is not a folder"):
            find_videos(absent)


def test_facts_of_a_file(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mkv", n_frames=30, fps=25, options={"g": "12", "bf": "0"})
    facts = describe(str(path))
    assert facts.keyframes == [0, 12, 24]
    size = path.stat().st_size
    assert facts == VideoFacts(str(path), "h264", 64, 48, 25.0, 30, [0, 12, 24], size)
    assert facts.kbit_per_sec == pytest.approx(size * 8 / 1000 / 1.2)  # 30 frames take 1.2 s


def test_what_is_no_video_has_no_facts(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(ValueError, match=r"v\.mp4 cannot be opened"):
        describe(str(tmp_path / "v.mp4"))


def test_made_videos_come_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(function, jobs, *, n_worker: int):
        for job in reversed(jobs):
            function(job)
            yield Result(job)

    made = []
    monkeypatch.setattr(videos, "run_isolated", backwards)
    monkeypatch.setattr(videos, "make_video", lambda *job, seed: made.append((seed, *job)))
    paths = videos.make_videos(tmp_path, 4)
    assert [Path(path).name for path in paths] == [f"made_{number}.mp4" for number in range(4)]
    scenes = [SCENES[0], SCENES[1], SCENES[2], SCENES[0]]
    assert sorted(made) == [(i, path, scenes[i]) for i, path in enumerate(paths)]


def test_a_video_that_cannot_be_made_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashing(function, jobs, *, n_worker: int):
        yield Result(jobs[0], None, "crashed", "killed by signal 11")

    monkeypatch.setattr(videos, "run_isolated", crashing)
    with pytest.raises(RuntimeError, match="cannot be made: crashed"):
        videos.make_videos(tmp_path, 1)
