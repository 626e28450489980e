#!/usr/bin/env python
"""The rule of the plan as a table, asked of the code: columns, rows and epsilon in, route, shares and steps out.

    python scripts/rule_table.py              # writes docs/reference/rules.md
    python scripts/rule_table.py --check      # ends with 1 where the page is not what the code says

Costs seconds: a plan opens no data. Why the rule is as it is stands in docs/decisions.md with the measurements.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dpvae.config import DataConfig, PrivacyConfig, TrainConfig  # noqa: E402
from dpvae.privacy.plan import Plan, PublicFacts, make_plan, route  # noqa: E402
from dpvae.privacy.table_plan import TableRule  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "rules.md"
COLUMNS, ROWS, EPSILONS = (4, 15, 60, 100, 200), (1_000, 50_000), (0.1, 1.0, 10.0)
TEXT = """# The rule

<!-- Made by: python scripts/rule_table.py -->

What a plan decides, it decides from public facts: the columns and their declaration, the declared number of rows,
epsilon, and the settings of the trainer. These are its decisions for tables whose schema is declared and which have a
target of two values, `trainer=anchored`, delta by the rule. `dpvae plan` prints them for yours;
`dpvae plan --sweep` tries them on made-up rows. A share is of squared signal: a release with noise multiplier s has
signal 1/s, and squared signals add up.

| columns | rows | epsilon | route | survey | anchors | interactions | DP-SGD | ELBO | rate | steps | codes | fit |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
{rows}

The evidence, with the benchmark that makes each number again:

- how the budget splits between counts and DP-SGD on narrow tables: `scripts/bench_tables.py`,
  `reports/bench/tables.md`;
- from how many columns a latent code does better than pairs: `scripts/bench_routing.py`, `reports/bench/`;
- what codes and steps are worth at each epsilon, what was tried and dropped: [decisions](../decisions.md).
"""


def main() -> int:
    """Write the page, or compare it."""
    text = TEXT.format(rows="\n".join(map(row, product(COLUMNS, ROWS, EPSILONS))))
    if "--check" in sys.argv:
        return 0 if PAGE.read_text() == text else 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text)
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0


def row(facts: tuple[int, int, float]) -> str:
    """One line of the table."""
    columns, rows, epsilon = facts
    config = TrainConfig(data=DataConfig(rows=rows), privacy=PrivacyConfig(epsilon=epsilon))
    facts = PublicFacts(columns=columns, rows=rows, has_target=True, survey_steps=("bins",))
    plan = make_plan(config, facts, TableRule())
    sgd = plan.sgd
    cells = [f"{columns}", f"{rows:,}", f"{epsilon:g}", route(plan).partition(":")[0].partition(" (")[0],
             share(plan, "survey"), share(plan, "anchor", "latent"), share(plan, "interactions"), share(plan, "dpsgd"),
             share(plan, "metric"), f"{sgd.sampling_rate:.3g}" if sgd else "-", f"{sgd.steps}" if sgd else "-",
             f"{plan.components or '-'}", f"{plan.fit_steps:,}"]
    return "| " + " | ".join(cells) + " |"


def share(plan: Plan, *phases: str) -> str:
    """What part of the squared signal goes into some phases."""
    part = sum(value for name, value in plan.shares.items() if name.partition("/")[0] in phases)
    return f"{100 * part:.1f} %" if part else "-"


if __name__ == "__main__":
    sys.exit(main())
