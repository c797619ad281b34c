"""The table of torn pictures that the doctor finds, and does not."""

from collections.abc import Callable, Iterable
from typing import Any

from measured import BENCH, bench


def broken_frames() -> str:
    """Spans found and false alarms, on generated videos and, where they were given, real clips."""
    measured = bench("broken_frames.json")
    sets = {"generated videos: named, ends right": measured["generated"]}
    if "clips" in measured:
        sets["real clips: named, ends right"] = measured["clips"]
    lines = [_row("", sets), _row("---", ["---"] * len(sets))]

    def add(name: str, cell: Callable[[dict[str, Any]], str]) -> None:
        lines.append(_row(name, [cell(part) for part in sets.values()]))

    in_packets = measured["in_packets"]
    for kind in sorted(measured["generated"]["damaged"], key=in_packets.__contains__):
        how = "damaged bitstream" if kind in in_packets else "painted"
        add(f"{how}: {kind}", lambda part, kind=kind: _found(part["damaged"].get(kind)))
    add("**of all**", lambda part: f"**{_found(_sum(part['damaged']))}**")
    for kind in measured["generated"]["whole"]:
        if any(part["whole"].get(kind, {}).get("alarms") for part in sets.values()):
            add(f"whole: {kind}", lambda part, kind=kind: _alarms(part["whole"].get(kind)))
    add("**false alarms, of all whole videos**", lambda part: f"**{_alarms(_sum(part['whole']))}**")
    add("CPU time added to decoding", _cost)
    return "\n".join([*lines, "", _definitions(measured)])


def _definitions(measured: dict[str, Any]) -> str:
    visible = measured["visible"]
    sources = f"{measured['sources']} generated sources of {measured['frames']} frames"
    if "clips" in measured:
        sources += (
            f" and the first {measured['frames']} of {measured['clips']['sources']} real clips"
        )
    return (
        f"{sources}, each once for every kind of edit and of damage. Damage "
        f"counts where for at least {visible['least_frames']} frames {visible['share']:.0%} of the "
        f"picture's blocks differ by {visible['far_grey_levels']:.0f} grey levels or more from "
        f"every place within {visible['reach_pixels']} pixels in the whole pictures of that time, "
        "of shortly before, and of either side of the damage. Damage is named where "
        "a span that is named overlaps it; its ends are right where the two share "
        f"{measured['overlap']:.0%} of their union. The network was "
        "trained on other sources, generated and real. Raw figures: "
        f"[{BENCH}/broken_frames.json](../{BENCH}/broken_frames.json); `make broken-proof` "
        "measures again."
    )


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join([name, *cells])} |"


def _cost(part: dict[str, Any]) -> str:
    seconds = part["seconds"]
    added = seconds["with the detector"] - seconds["decoding"]
    n_videos = _sum(part["damaged"])["videos"] + _sum(part["whole"])["videos"]
    return f"+{added / seconds['decoding']:.0%}, {added / n_videos:.2f} s a video"


def _sum(kinds: dict[str, dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for counts in kinds.values():
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return total


def _found(counts: dict[str, Any] | None) -> str:
    return "" if counts is None else "{named}, {found} of {videos}".format(**counts)


def _alarms(counts: dict[str, Any] | None) -> str:
    return "" if counts is None else f"{counts['alarms']} of {counts['videos']}"
