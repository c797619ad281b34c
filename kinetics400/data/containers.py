"""Which container a file is, by its first bytes, and how one is opened. No torch.

FFmpeg reads whatever its probe recognises, also playlists that open other files. So the demuxer is
chosen here and never by FFmpeg, and nothing but the file itself may be opened.
"""

import av
from av.container import InputContainer

SUFFIX_DEMUXER = {".mp4": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
# ISO base media files start with one of these boxes.
MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")
# Containers that store when each frame is shown. (AVI does not, and what FFmpeg makes up can be
# wrong.)
TIMED_DEMUXERS = {"mov", "matroska"}


def sniff(path: str) -> str | None:
    """Demuxer name for a file's first bytes: "mov", "matroska", "avi", or None.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return sniff_bytes(file.read(16))


def sniff_bytes(head: bytes) -> str | None:
    """The same for a file's first 16 bytes."""
    if head[4:8] in MOV_BOXES:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    return None


def open_video(path: str, demuxer: str, **options: str) -> InputContainer:
    """Open a file with a given demuxer and FFmpeg options.

    Raises:
        FFmpegError: it cannot be opened.
    """
    # "file:" so that a name like "concat:a|b.mp4" stays a name.
    return av.open(
        "file:" + path,
        format=demuxer,
        options={"protocol_whitelist": "file", **options},
        metadata_errors="replace",
    )


def top_boxes(path: str, n_bytes: int) -> tuple[list[bytes], int]:
    """Kinds of an MP4's top-level boxes, and where the last one says that it ends."""
    boxes: list[bytes] = []
    position = 0
    with open(path, "rb") as file:
        while position + 8 <= n_bytes and len(boxes) < 1000:
            file.seek(position)
            header = file.read(16)
            size = int.from_bytes(header[:4])
            if size == 1:  # 64-bit size follows
                size = int.from_bytes(header[8:16])
            elif size == 0:  # to the end of the file
                size = n_bytes - position
            boxes.append(header[4:8])
            if size < 8:
                break
            position += size
    return boxes, position
