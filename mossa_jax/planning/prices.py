"""List prices of chips, for plans and for the budgets of the launch scripts.

A price changes, differs between regions by a factor of up to 1.5, and is a half or less of it for capacity that may be
taken away (spot). GPUs have none here: providers differ by a factor of five.
"""

from __future__ import annotations

PRICES = {"v4": 3.22, "v5e": 1.20, "v5p": 4.20, "v6e": 2.70}
"""US dollars per chip-hour on demand in Google's US regions, not checked against a price list: compare them with those
of today (cloud.google.com/tpu/pricing), and give your own by --price."""


def list_price(hardware: str) -> float:
    """Returns the list price of one chip for one hour, in US dollars; 0 if it is not known.

    Args:
      hardware: a name as in `hardware.find_hardware`, or of a chip alone.
    """
    return PRICES.get(hardware.partition(":")[0], 0.0)


def price_lines() -> str:
    """Returns the table as lines for people and scripts: chip, price, currency, unit."""
    return "\n".join(f"{chip} {price:.2f} USD per chip-hour, on demand" for chip, price in PRICES.items())
