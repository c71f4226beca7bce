"""Write table.csv: scikit-learn's wine table with a column `site`, and one CSV for each site.

    python prepare.py

scikit-learn brings no heart disease table; its wine table has the same form, numbers in columns and
a class. The sites are made up: barbera is grown in the west alone, as a disease may be seen at one
clinic alone.
"""

import argparse
import csv

import numpy as np
from sklearn.datasets import load_wine

SITES = ("north", "south", "west")
CULTIVARS = ("barolo", "grignolino", "barbera")
# Of each cultivar's rows, the share of each site: barbera is known in the west alone.
SHARES = {"barolo": (0.45, 0.35, 0.2), "grignolino": (0.4, 0.4, 0.2), "barbera": (0.0, 0.0, 1.0)}


def main() -> None:
    """Write the files."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    wine = load_wine()
    draws = np.random.default_rng(0)
    columns = [name.replace("/", "_") for name in wine.feature_names]
    rows = []
    for inputs, label in zip(wine.data, wine.target, strict=True):
        name = CULTIVARS[label]
        rows.append([*inputs, name, draws.choice(SITES, p=SHARES[name])])
    for file, kept in {
        "table": rows,
        **{s: [r for r in rows if r[-1] == s] for s in SITES},
    }.items():
        with open(f"{file}.csv", "w", newline="") as out:
            csv.writer(out).writerows([[*columns, "cultivar", "site"], *kept])
        print(f"{file}.csv: {len(kept)} rows")


if __name__ == "__main__":
    main()
