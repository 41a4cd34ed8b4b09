"""Results that tests draw, and how they draw them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import SLIDE

from stpredict.batch.jobs import find_jobs
from stpredict.batch.slides import predict_slides
from stpredict.engines.engine import EngineRequest
from stpredict.prediction.one_slide import Request
from stpredict.rendering.render import render
from stpredict.rendering.styles import RenderRequest
from stpredict.result.file import Gene, Result, read_result
from stpredict.result.writing import Content, write_result
from stpredict.slides.lattice import Spots
from stpredict.slides.slide import Bounds, Mpp


def predict(model, out, slide=SLIDE, **request) -> Result:
    asked = Request(engine=EngineRequest("eager", "fp32"), **request)
    (outcome,) = predict_slides(find_jobs([str(slide)], out, print), model, asked, print, lambda *_: None)
    return read_result(outcome.job.result)


def draw(result, out, *styles, **request) -> list[Path]:
    return list(render(result, RenderRequest(styles=styles, **{"genes": ["GNAS"], **request}), out))


MPP = Mpp(0.5, 0.5)


def made_up(
    path: Path, spots: Spots, values: np.ndarray, mpp: Mpp = MPP, size: tuple[int, int] = (600, 400),
    bounds: Bounds | None = None, genes: list[str] | None = None, model: str = "made-up",
    quality: dict[str, np.ndarray] | None = None, slide: str | None = None,
) -> Result:  # fmt: skip
    """A result with these `values`, spots x genes, of a slide that does not exist; older ones know no `quality`."""
    names = genes or [f"G{i}" for i in range(values.shape[1])]
    provenance = {
        "stpredict": "0",
        "model": {"name": model, "sha256": model},
        "expression_unit": "ln(1 + CPM) of the expected share",
        "settings": {"genes": names, "values": float(np.nansum(values))},
        "slide": {
            "name": path.stem, "path": slide or f"{path.stem}.svs", "fingerprint": "0" * 64, "dimensions": list(size),
            "bounds": list(bounds or Bounds(0, 0, *size)), "mpp": list(mpp),
        },
        "lattice": {"layout": spots.layout, "pitch_um": spots.pitch_um, "spot_diameter_um": 50.0},
        "unusual_patches": 0.0,
        "display_range": None,
    }  # fmt: skip
    content = Content(
        path.stem, spots, {"tissue_fraction": np.ones(len(spots), np.float32), **(quality or {})},
        [Gene(name, 0.3, 5.0) for name in names],
        [values.astype(np.float32)], provenance, {}, np.full((40, 60, 3), 255, np.uint8), max(size) / 60, 100.0,
    )  # fmt: skip
    write_result(path, content)
    return read_result(path)
