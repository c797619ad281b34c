"""`kinetics400 doctor`: what is wrong with the machine and the data, before training finds out."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from kinetics400.commands.doctor_environment import check_environment
from kinetics400.commands.doctor_report import (
    as_json,
    format_data,
    format_environment,
    format_findings,
    verdict,
)
from kinetics400.commands.progress import ProgressMeter
from kinetics400.config.doctor import DoctorConfig
from kinetics400.config.parse import parse
from kinetics400.data.checkup import Checkup, Rules, check_library
from kinetics400.data.checkup_full import check_pictures
from kinetics400.data.findings import ERROR
from kinetics400.data.isolation import cpu_count
from kinetics400.data.library import LIBRARY_NAME, find_library, list_name, videos_name
from kinetics400.data.listing import read_names
from kinetics400.data.storage import write_atomic
from kinetics400.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Run the command: 0 nothing is wrong, 1 something is; failures propagate to `run_command`."""
    config = parse(
        DoctorConfig,
        argv,
        prog="kinetics400 doctor",
        description="Check this machine and the dataset, and name everything that is wrong. "
        "Nothing is changed but a cache of headers in .preprocess/.",
    )
    _check(config)
    names = read_names(config.label_names, config.num_classes)
    n_worker = config.n_worker or cpu_count()
    facts = check_environment(config.data_dir, n_worker)
    print(format_environment(facts), flush=True)
    library = _library(config.data_dir)
    rules = Rules(config.num_classes, names, config.num_frames * config.sampling_rate, n_worker)
    checkup = _read(library, rules)
    findings = list(checkup.findings)
    if config.full:
        total = sum(1 for _ in checkup.usable())
        with ProgressMeter("decoding", total, "videos") as meter:
            findings += check_pictures(checkup, n_worker, meter.update)
    print(f"\n{format_data(checkup)}\n\n{format_findings(findings, config.json)}")
    print(f"\n{verdict(facts, findings)}")
    if config.json is not None:
        report = as_json(facts, checkup, findings, full=config.full)
        write_atomic(config.json, json.dumps(report, indent=1) + "\n")
    levels = {fact.verdict for fact in facts} | {finding.level for finding in findings}
    return 1 if ERROR in levels else 0


def _read(library: Path, rules: Rules) -> Checkup:
    meters: list[ProgressMeter] = []
    with ExitStack() as stack:

        def progress(done: int, total: int) -> None:
            if not meters:
                meter = ProgressMeter("reading headers", total, "videos")
                meters.append(stack.enter_context(meter))
            meters[0].update(done)

        return check_library(library, rules, progress)


def _library(data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise InputError(
            f"--data_dir {data_dir} is not a folder. Name the folder with {LIBRARY_NAME}; "
            "`python -m data.preprocess` makes it."
        )
    library = find_library(data_dir)
    if library is None:
        raise InputError(
            f"--data_dir {data_dir} holds no dataset: neither it nor {LIBRARY_NAME} in it has "
            f"{list_name('train')} or {videos_name('train')}. `python -m data.preprocess` makes "
            "them."
        )
    return library


def _check(config: DoctorConfig) -> None:
    counts = {
        "n_worker": config.n_worker,
        "num_classes": config.num_classes,
        "num_frames": config.num_frames,
        "sampling_rate": config.sampling_rate,
    }
    problems = [
        f"--{name} {value} is not positive"
        for name, value in counts.items()
        if value is not None and value < 1
    ]
    if config.json is not None and not config.json.absolute().parent.is_dir():
        problems.append(f"--json {config.json}: there is no folder {config.json.parent}")
    if problems:
        raise InputError("; ".join(problems) + ".")
