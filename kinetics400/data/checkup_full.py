"""Check a library by decoding all of it, in isolated processes. No torch."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import av

from kinetics400.data.broken import BrokenMeter
from kinetics400.data.checkup import Checkup, Place
from kinetics400.data.checkup_journal import CheckupJournal
from kinetics400.data.findings import Finding
from kinetics400.data.isolation import run_isolated
from kinetics400.data.stills import ChangeMeter, still_spans
from kinetics400.data.verify import Refused, verify_video

FLUSH_EVERY = 50  # videos: a killed check-up repeats fewer


def examine(path: str) -> dict[str, str]:
    """Decode a video and hash it. Runs in an isolated process.

    Returns: reason and detail of verify's refusal, empty for none; the spans of torn pictures, in
    words; those of still ones that are not torn; and the SHA-256.
    """
    changes, torn = ChangeMeter(), BrokenMeter()

    def look(frame: av.VideoFrame) -> None:
        changes.add(frame)
        torn.add(frame)

    verdict = verify_video(path, look)
    broken = torn.finish()
    stills = [
        span
        for span in still_spans(changes.changes)
        if all(span[1] < first or last < span[0] for first, last in broken)
    ]
    refused = asdict(verdict) if isinstance(verdict, Refused) else {"reason": "", "detail": ""}
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # the verdict says so
        digest = ""
    return {**refused, "broken": _words(broken), "stills": _words(stills), "sha256": digest}


def _words(spans: list[tuple[int, int]]) -> str:
    return ", ".join(f"{first}–{last}" for first, last in spans)


def check_pictures(
    checkup: Checkup, n_worker: int, on_progress: Callable[[int], None] = lambda done: None
) -> list[Finding]:
    """Decode every video whose header is in order; what was decoded before is remembered.

    Args:
        checkup: what `check_library` returned.
        n_worker: processes.
        on_progress: called with the number of videos done.
    """
    journal = CheckupJournal(checkup.library, "doctor_pictures.jsonl", flush_every=FLUSH_EVERY)
    known: dict[Place, dict[str, Any]] = {}
    todo: dict[str, list[Place]] = {}
    for place in checkup.usable():
        header = checkup.headers[place]
        row = journal.get("/".join(place), header.n_bytes, header.mtime_ns)
        if row is not None and row.keys() >= {"reason", "detail", "broken", "stills", "sha256"}:
            known[place] = dict(row)
        else:
            todo.setdefault(checkup.path(place), []).append(place)
    try:
        on_progress(len(known))
        for result in run_isolated(examine, list(todo), n_worker=n_worker):
            value: dict[str, Any] = result.value or {
                "reason": result.failure,
                "detail": result.detail,
                "broken": "",
                "stills": "",
                "sha256": "",
            }
            for place in todo[result.job]:
                known[place] = value
                header = checkup.headers[place]
                journal.add("/".join(place), header.n_bytes, header.mtime_ns, **value)
            on_progress(len(known))
    finally:
        journal.flush()
    return [finding for place, row in known.items() for finding in _findings(checkup, place, row)]


def _findings(checkup: Checkup, place: Place, row: dict[str, Any]) -> list[Finding]:
    split, name = place
    found = [Finding(row["reason"], split, name, row["detail"])] if row["reason"] else []
    if row["broken"]:
        found.append(Finding("broken frames", split, name, f"frames {row['broken']}"))
    if row["stills"]:
        found.append(Finding("still picture", split, name, f"frames {row['stills']}"))
    stored = checkup.stored_sums.get(place)
    if stored is not None and row["sha256"] and row["sha256"] != stored:
        found.append(Finding("content changed", split, name, "its SHA-256 is not the stored one"))
    return found
