"""Scores that papers report for the systems, to print beside a comparison by their protocols; and these tests' leaks.

M2ORT (Wang et al. 2024): per held-out spot the correlation across genes, in per cent, and the RMSE. Table 5 is on
systems, tables 2, 3 (without RMSE), 6 and 7 on its own parts. On all data sets, its network of level 0 alone has the
correlations of its ResNet50 to the last digit. TRIPLEX (Chung et al. 2024, CVPR), table 1: the mean squared error,
PCC(M), PCC(H).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reported:
    """A paper's table: the data sets, the scores on each, and a row of numbers for each system that it names."""

    table: str
    data_sets: tuple[str, ...]
    scores: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]  # all scores on one data set, then on the next; None if not reported


#: By the protocol's name.
REPORTED = {
    "m2ort": Reported(
        "tables 2 to 7 of the M2ORT paper",
        ("HBC", "HER2+", "cSCC"),
        ("PCC %", "RMSE"),
        {
            "resnet50": (47.10, 3.17, 43.33, 3.04, 49.34, 3.60),
            "vit-b16": (46.67, 3.17, 43.78, 3.09, 49.01, 3.77),
            "deepspace": (46.01, 3.19, 42.57, 3.17, 48.99, 3.73),
            "stnet": (47.78, 3.16, 43.01, 3.07, 49.37, 3.58),
            "histogene": (44.76, 3.20, 36.97, 3.62, 45.71, 3.93),
            "hist2st": (45.00, 3.18, 40.02, 3.06, 46.71, 3.88),
            "m2ort-small": (47.78, 3.13, 43.98, 2.89, 50.70, 3.38),
            "m2ort-base": (48.59, 3.13, 44.37, 2.89, 50.97, 3.37),
            "m2ort-large": (48.90, 3.10, 44.61, 2.87, 51.21, 3.34),
            "m2ort-base:levels=0": (47.10, 3.15, 43.33, 3.05, 49.34, 3.60),
            "m2ort-base:levels=1": (45.73, 3.17, 43.12, 3.05, 48.78, 3.81),
            "m2ort-base:levels=2": (41.62, 3.06, 40.24, 3.07, 45.78, 3.89),
            "m2ort-base:levels=0+1": (47.98, 3.15, 43.85, 2.99, 50.33, 3.55),
            "m2ort-base:levels=0+2": (47.44, 3.17, 43.61, 2.99, 49.73, 3.61),
            "m2ort-base:levels=1+2": (46.07, 3.14, 43.45, 3.04, 49.11, 3.80),
            "m2ort-small:mixing=dense": (47.29, None, 44.13, None, 50.77, None),
            "m2ort-base:mixing=dense": (48.62, None, 44.28, None, 50.81, None),
            "m2ort-large:mixing=dense": (48.93, None, 44.67, None, 51.13, None),
            "m2ort-small:mixing=dense:mlp_dim=3072": (47.03, None, 43.77, None, 50.39, None),
            "m2ort-base:mixing=dense:mlp_dim=3072": (48.46, None, 44.03, None, 50.42, None),
            "m2ort-large:mixing=dense:mlp_dim=3072": (48.71, None, 44.50, None, 50.88, None),
            "m2ort-small:mlp_dim=0": (45.62, 3.21, 41.89, 3.19, 48.19, 3.75),
            "m2ort-base:mlp_dim=0": (46.39, 3.18, 42.21, 3.15, 48.77, 3.73),
            "m2ort-large:mlp_dim=0": (47.02, 3.15, 45.13, 3.10, 50.11, 3.69),
            "m2ort-small:mixing=none:pool=mean": (43.77, 3.29, 40.54, 3.22, 47.44, 3.79),
            "m2ort-base:mixing=none:pool=mean": (44.42, 3.24, 41.19, 3.18, 47.99, 3.76),
            "m2ort-large:mixing=none:pool=mean": (46.88, 3.16, 44.89, 3.12, 49.44, 3.72),
            "m2ort-base:levels=0:sample_levels=yes": (47.21, 3.15, 43.59, 3.04, 49.91, 3.51),
            "m2ort-base:embedding=scales": (47.91, 3.14, 43.88, 3.03, 50.21, 3.43),
            "m2ort-base:embedding=scales:sample_levels=yes": (47.97, 3.14, 43.91, 3.03, 50.19, 3.43),
        },
    ),
    "triplex": Reported(
        "table 1 of the TRIPLEX paper",
        ("HER2+", "HBC", "cSCC"),
        ("MSE", "PCC(M)", "PCC(H)"),
        {
            "stnet": (0.260, 0.194, 0.345, 0.209, 0.116, 0.223, 0.294, 0.274, 0.382),
            "egn": (0.241, 0.197, 0.328, 0.192, 0.111, 0.203, 0.281, 0.281, 0.388),
            "bleep": (0.277, 0.151, 0.277, 0.235, 0.095, 0.193, 0.297, 0.269, 0.396),
            "histogene": (0.314, 0.168, 0.302, 0.194, 0.100, 0.219, 0.270, 0.133, 0.261),
            "hist2st": (0.285, 0.118, 0.248, 0.181, 0.044, 0.099, 1.291, 0.004, 0.053),
            "triplex": (0.228, 0.314, 0.497, 0.202, 0.206, 0.352, 0.268, 0.374, 0.490),
        },
    ),
}


#: Systems that a paper reports as one: mixings of M2ORT, and TRIPLEX's sizes, one for each data set.
SAME = {
    **{f"m2ort-{size}-cross": f"m2ort-{size}" for size in ("small", "base", "large")},
    **{f"triplex-{size}": "triplex" for size in ("bc2", "scc")},
}


def reported_of(protocol: str, system: str) -> tuple[float | None, ...] | None:
    """The scores that a protocol's paper reports for a system, None if it reports none.

    The system's options are in the order of docs/train.md.
    """
    return REPORTED[protocol].rows.get(SAME.get(system, system))
