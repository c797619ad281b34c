"""Lend torchcodec the FFmpeg of PyAV's wheel, so that pip installs all there is to compare.

    LD_LIBRARY_PATH=$(python benchmarks/ffmpeg_libraries.py FOLDER) python …

torchcodec asks for FFmpeg's libraries by the names that systems give them; the wheel carries the
same ones with a digest in the name. Links in a folder join the two. Prints what LD_LIBRARY_PATH
must hold, which has to be set before Python starts.
"""

import re
import sys
from importlib.metadata import files
from pathlib import Path

# libavcodec-5e6b81c2.so.62.28.102: the name, a digest, the version
BUNDLED = re.compile(r"(lib(?:av|sw)[a-z]+)-[0-9a-f]+\.so\.(\d+)[.\d]*")


def link_libraries(folder: Path) -> list[Path]:
    """Make links in a folder, `libavcodec.so.62` and so on; returns the folders to search.

    Raises:
        SystemExit: PyAV was not installed from a wheel of Linux.
    """
    found = [path for path in files("av") or [] if BUNDLED.fullmatch(path.name)]
    if not found:
        sys.exit("PyAV carries no FFmpeg libraries here: its wheels for Linux do")
    folder.mkdir(parents=True, exist_ok=True)
    for path in found:
        link = folder / BUNDLED.sub(r"\1.so.\2", path.name)
        link.unlink(missing_ok=True)
        link.symlink_to(Path(str(path.locate())).resolve())
    # What they need in turn lies beside them, under the digests' names.
    return [folder.resolve(), Path(str(found[0].locate())).resolve().parent]


if __name__ == "__main__":
    print(":".join(map(str, link_libraries(Path(sys.argv[1])))))
