"""Fill the tables of README.md and docs/ from the files in results/ and benchmarks/: `make docs`.

A block between `<!-- NAME -->` and `<!-- /NAME -->` belongs to the table of that name. A test holds
the committed pages to what this writes.
"""

import re

from accuracies import demo, inherited
from augmentation import augment_cost, augment_draws, augment_pixels
from broken import broken_frames
from clusters import cluster
from doctor import doctor_reasons, doctor_speed
from feeding import crf, disk, loader, loader_short
from fidelity import curves, deviations, draws, rules
from gpu import gpu
from measured import ROOT
from reliability import checkpoint_cost, faults, left_out
from scaling import exchange, scaling, sharded_memory
from speed import step, step_profile, step_ratios

from recipes import recipes

TABLES = {
    "inherited": inherited,
    "demo": demo,
    "loader": loader,
    "loader_short": loader_short,
    "crf": crf,
    "disk": disk,
    "augment_pixels": augment_pixels,
    "augment_draws": augment_draws,
    "augment_cost": augment_cost,
    "cluster": cluster,
    "broken_frames": broken_frames,
    "doctor_reasons": doctor_reasons,
    "doctor_speed": doctor_speed,
    "recipes": recipes,
    "checkpoint_cost": checkpoint_cost,
    "faults": faults,
    "faults_left_out": left_out,
    "fidelity_rules": rules,
    "fidelity_draws": draws,
    "fidelity_deviations": deviations,
    "fidelity_curves": curves,
    "scaling": scaling,
    "exchange": exchange,
    "sharded_memory": sharded_memory,
    "gpu": gpu,
    "step": step,
    "step_ratios": step_ratios,
    "step_profile": step_profile,
}
PAGES = (
    *("README.md", "docs/data.md", "docs/augmentation.md", "docs/clusters.md", "docs/doctor.md"),
    *("docs/recipes.md", "docs/fidelity.md", "docs/reliability.md"),
    *("docs/performance.md", "docs/scaling.md"),
)


def filled(text: str) -> str:
    """`text` with every block in it filled anew."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if re.search(pattern, text, flags=re.DOTALL):
            body = table()
            text = re.sub(pattern, lambda m, b=body: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
