"""The paper's figure 2, read off the image (about 0.01), and the three definitions of sections on it.

References:
  Zhao, Ziser and Cohen 2024, "Layer by Layer: Uncovering Where Multi-Task Learning Happens in Instruction-Tuned Large
  Language Models", arXiv 2410.20008, figure 2: Llama 2 7B over the tasks of FLAN 2021.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mossa_jax.findings.sections import summary_sections

# Layer: lower quartile, median and upper quartile of the pre-trained model, then those of the tuned one.
_READ_OFF = {
    1: (1.00, 1.00, 1.00, 0.99, 0.99, 0.99),
    2: (1.00, 1.00, 1.00, 0.99, 0.99, 0.99),
    4: (0.97, 0.99, 0.99, 0.91, 0.95, 0.99),
    6: (0.96, 0.98, 0.99, 0.83, 0.94, 0.98),
    8: (0.86, 0.94, 0.97, 0.84, 0.92, 0.97),
    9: (0.84, 0.92, 0.97, 0.87, 0.94, 0.97),
    10: (0.75, 0.89, 0.96, 0.93, 0.96, 0.98),
    12: (0.67, 0.85, 0.94, 0.95, 0.97, 0.98),
    13: (0.60, 0.82, 0.92, 0.95, 0.97, 0.98),
    15: (0.51, 0.74, 0.87, 0.95, 0.97, 0.98),
    16: (0.55, 0.74, 0.86, 0.93, 0.95, 0.98),
    20: (0.42, 0.64, 0.80, 0.91, 0.95, 0.98),
    25: (0.37, 0.60, 0.76, 0.89, 0.94, 0.97),
    30: (0.40, 0.61, 0.79, 0.89, 0.93, 0.97),
    31: (0.42, 0.63, 0.77, 0.89, 0.94, 0.97),
    32: (0.30, 0.53, 0.73, 0.89, 0.91, 0.94),
}


def figure2(runs: int = 0, seed: int = 0) -> pd.DataFrame:
    """Returns the sections of figure 2 by each definition beside the paper's own; nothing in it is random."""
    del runs, seed
    layers = tuple(range(1, 33))
    read = np.array(list(_READ_OFF.values())).T  # [6, layers read]
    values = np.array([np.interp(layers, list(_READ_OFF), row) for row in read])
    sections = summary_sections(values[:3], values[3:], layers)
    (first, last), (reach, leave) = sections["parting"], sections["plateau"]
    crossing = int(sections["crossing"])
    rows = [
        ("the paper", "1 to 9", "10 to 15", "16 to 32", "figure 1"),
        (
            "parting",
            f"1 to {first - 1}",
            f"{first} to {last}",
            f"{last + 1} to 32",
            f"E makes {100 * sections['own_share']:.0f} % of the rise",
        ),
        (
            "plateau",
            f"1 to {reach - 1:.0f}",
            f"{reach:.0f} to {leave:.0f}",
            f"{leave + 1:.0f} to 32",
            "E's lower quartile within 0.025 of its peak",
        ),
        ("crossing", f"1 to {crossing - 1}", f"from {crossing}", "", "E's median above the base's for good"),
    ]
    return pd.DataFrame(rows, columns=["definition", "shared", "transition", "refinement", "note"])
