"""Convert units of length, as microscopy files name them, to micrometres."""

from __future__ import annotations

import re
import unicodedata

#: Powers of ten of a metre, by the prefixes of OME-XML. Upper and lower case differ.
PREFIXES = {
    "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "": 0, "d": -1, "c": -2,
    "m": -3, "\u03bc": -6, "u": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24,
}  # fmt: skip
UM = {
    **{f"{prefix}m": 10.0 ** (power + 6) for prefix, power in PREFIXES.items()},
    "\u00c5": 1e-4, "thou": 25.4, "li": 25.4e3 / 12, "in": 25.4e3, "ft": 304.8e3, "yd": 914.4e3, "pt": 25.4e3 / 72,
}  # fmt: skip
#: Other names that ImageJ and others write, here in small letters and without the s of a plural.
WORDS = {
    "micron": 1.0, "micrometer": 1.0, "micrometre": 1.0, "inch": 25.4e3, "inche": 25.4e3, "millimeter": 1e3,
    "millimetre": 1e3, "centimeter": 1e4, "centimetre": 1e4, "nanometer": 1e-3, "nanometre": 1e-3, "angstrom": 1e-4,
    "meter": 1e6, "metre": 1e6,
}  # fmt: skip
#: UTF-8 that was once read as Latin-1.
MOJIBAKE = {
    "\u00c2\u00b5": "\u00b5",
    "\u00ce\u00bc": "\u03bc",
    "\u00c3\u2026": "\u00c5",
    "\u00e2\u201e\u00ab": "\u00c5",
}


def micrometres(unit: str) -> float | None:
    """How many micrometres a unit is; None for pixels, and for a unit that is unknown or no length."""
    name = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), unit.strip())
    for wrong, right in MOJIBAKE.items():
        name = name.replace(wrong, right)
    name = unicodedata.normalize("NFKC", name)  # Unicode has two micro signs and two Angstroms; make them one
    small = name.lower()
    return UM.get(name) or UM.get(small) or WORDS.get(small.removesuffix("s"))
