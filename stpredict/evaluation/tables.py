"""The columns of an evaluation's tables, and how a score is written."""

from __future__ import annotations

COLUMNS = {
    "depth_controlled": "depth-controlled",
    "quartiles": "quartiles",
    "of_the_ceiling": "of the ceiling",
    "log_cpm_pearson": "expression Pearson",
    "log_cpm_spearman": "Spearman",
}
#: Scores as the M2ORT and TRIPLEX papers define them, of ln(1 + CPM) or the model's own unit of expression.
PAPERS_COLUMNS = {
    "log_cpm_per_spot": "per spot",
    "log_cpm_rmse": "RMSE",
    "pcc_m": "PCC(M)",
    "pcc_h": "PCC(H)",
    "mse": "MSE",
    "mae": "MAE",
}


def shown(key: str, value: float | list[float] | None) -> str:
    """A score as text; `key` names its column."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return " ".join(f"{part:.3f}" for part in value)
    return f"{value:.0%}" if key == "of_the_ceiling" else f"{value:.3f}"
