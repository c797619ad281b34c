"""The Python in data/README.md does what the text around it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_lists_from_csv_hold_only_videos_on_disk(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "data/README.md").read_text(), re.DOTALL)
    for split, name in (("train", "abc_000010_000020.mp4"), ("val", "---x_000000_000010.mp4")):
        folder = tmp_path / "data" / "Kinetics-400" / f"videos_{split}"
        folder.mkdir(parents=True)
        (folder / name).touch()
        (tmp_path / f"{split}.csv").write_text(
            "label,youtube_id,time_start,time_end,split\n"
            f"zumba,abc,10,20,{split}\nabseiling,---x,0,10,{split}\n",
            encoding="utf-8",
        )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    lists = tmp_path / "data" / "Kinetics-400"
    assert (
        lists / "kinetics400_train_list_videos.txt"
    ).read_text() == "abc_000010_000020.mp4 399\n"
    assert (lists / "kinetics400_val_list_videos.txt").read_text() == "---x_000000_000010.mp4 0\n"
