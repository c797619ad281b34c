"""Tables of the fidelity page: rules, draws, deviations, learning curves."""

from augmentation import draws_table
from measured import result


def _linked(test: str) -> str:
    file, name = test.split("::")
    return f"[{name.removeprefix('test_')}](../tests/{file})"


def _number(value: float) -> str:
    return "0" if not value else f"{value:.1e}" if value < 0.01 else f"{value:g}"


def rules() -> str:
    """Every published rule against its reference."""
    fidelity = result("fidelity.json")
    lines = [
        "| | what the paper's code does | source | ours | compared with | largest difference | "
        "allowed | test |",
        "|---|---|---|---|---|---|---|---|",
    ]
    before = ""
    for row in fidelity["rules"]:
        part, before = ("" if row["part"] == before else row["part"]), row["part"]
        unit = {"1": "", "relative": " relative"}.get(row["unit"], f" {row['unit']}")
        allowed = "exact" if not row["allowed"] else f"{_number(row['allowed'])}"
        lines.append(
            f"| {part} | {row['rule']} | {row['source'].removeprefix('VideoMAE ')} "
            f"| `{row['ours']}` | {row['reference']} | {_number(row['largest'])}{unit} "
            f"| {allowed} | {_linked(row['test'])} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in fidelity["versions"].items())
    compared = sum(row["compared"] for row in fidelity["rules"])
    lines += ["", f"{len(fidelity['rules'])} rules, {compared:,} numbers compared. {versions}."]
    return "\n".join(lines)


def draws() -> str:
    """Distributions of what is drawn."""
    fidelity = result("fidelity.json")
    augment = fidelity["augmentation_draws"]
    lines = [
        *draws_table(fidelity),
        f"{augment['count']} more quantities, of augmentation, are in [augmentation.md]"
        f"(augmentation.md): at least {augment['fewest']:,} draws each, smallest p "
        f"{augment['least_p_value']:.3f}.",
    ]
    return "\n".join(lines)


def deviations() -> str:
    """Where ours departs unless told not to."""
    lines = [
        "| published | ours by default | why | difference | with the switch |",
        "|---|---|---|---|---|",
    ]
    for row in result("fidelity.json")["deviations"]:
        lines.append(
            f"| {row['rule']} | {row['ours']} | {row['why']} | {row['mean']:.2f} {row['unit']} on "
            f"average | `{row['switch']}`: {_number(row['with_switch'])} |"
        )
    return "\n".join(lines)


def curves() -> str:
    """Learning curves of two loops."""
    fidelity = result("fidelity_curves.json")
    lines = [
        "| task | steps | loss, first and last | largest relative gap | rounding alone |",
        "|---|---|---|---|---|",
    ]
    for curve in fidelity["curves"]:
        theirs = curve["reference"]
        lines.append(
            f"| {curve['task']} | {len(theirs)} | {theirs[0]:.4f}, {theirs[-1]:.4f} "
            f"| {curve['largest_gap']:.1e} | {curve['largest_gap_of_rounding']:.1e} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in fidelity["versions"].items())
    lines += ["", f"Allowed: {fidelity['allowed_gap']:g}. {versions}."]
    return "\n".join(lines)
