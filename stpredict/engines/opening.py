"""Open the engine that suits a request, checked against fp32 eager on real patches."""

from __future__ import annotations

from dataclasses import replace

from stpredict.arrays import UInt8
from stpredict.console import Report
from stpredict.engines.engine import ENGINES, OUT_OF_MEMORY, SUPPORTED, Engine, EngineRequest
from stpredict.errors import EngineError, PrecisionError
from stpredict.model.file import Model


def open_engine(
    model: Model, request: EngineRequest, sample: UInt8, report: Report, n_spots: int = 0, keep: bool = True
) -> Engine:
    """Build, or take from the cache, the engine that suits the request, and check it on the `sample` of real patches.

    With `auto`, an engine is built only if that saves time over `n_spots` spots. If a precision or engine fails its
    check, the next one follows, and `report` is told. Without `keep`, a built engine is not cached.
    Raises EngineError if a named engine cannot run here, or none passes.
    """
    from stpredict.engines.selection import candidates
    from stpredict.engines.self_test import failed_self_test

    failures = []
    for name, precision in candidates(model, request, n_spots):
        try:
            engine = _open_smaller(name, model, precision, request, sample, report, keep)
        except PrecisionError as error:
            if request.precision != "auto":  # a precision that nobody asked for may be missing
                failures.append(str(error))
            continue
        except EngineError as error:
            failures.append(str(error))
            continue
        wrong = failed_self_test(engine, model)
        if wrong:
            failures.append(f"{name} {precision} {wrong}.")
        elif engine.verdict.passed:
            for failure in failures:
                report(f"engine: {failure} Using {name} {precision}.")
            return engine
        else:
            failures.append(f"{name} {precision} failed its numeric check ({engine.verdict.summary()}).")
    no_device = all(failure.startswith("--device") for failure in failures)
    advice = [] if no_device else ["Another --engine or --precision may do."]
    raise EngineError(" ".join([*dict.fromkeys(failures), *advice]))


def _open_smaller(
    name: str, model: Model, precision: str, request: EngineRequest, sample: UInt8, report: Report, keep: bool
) -> Engine:
    """Open an engine; while a GPU lacks the memory, halve the batches and say so."""
    while True:
        try:
            return _open(name, model, precision, request, sample, report, keep)
        except Exception as error:
            if name == "openvino" or not _out_of_memory(error):
                raise
            from stpredict.engines.running import BATCH_SIZES

            size = request.batch_size or BATCH_SIZES["cuda"]
            if size == 1:
                raise EngineError(f"{name}: the GPU has no memory for even one patch at a time.") from error
            report(f"{name}: the GPU has no memory for {size} patches at a time; trying {size // 2}.")
            request = replace(request, batch_size=size // 2)


def _out_of_memory(error: BaseException | None) -> bool:
    """Did a GPU's memory run out, in this error or in one that caused it? Libraries other than torch say it in words.

    This does not import torch, whose OutOfMemoryError is a RuntimeError.
    """
    while error is not None:
        if isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            return True
        error = error.__cause__
    return False


def _open(
    name: str, model: Model, precision: str, request: EngineRequest, sample: UInt8, report: Report, keep: bool
) -> Engine:
    if precision not in SUPPORTED[name]:
        able = ", ".join(engine for engine in ENGINES if precision in SUPPORTED[engine])
        raise EngineError(f"{name}: runs in {', '.join(SUPPORTED[name])}; for {precision} there is {able}.")
    if name == "openvino":
        try:
            from stpredict.engines.openvino import open_openvino
        except ImportError as error:
            raise EngineError(f"openvino: cannot be imported ({error}); pip install openvino.") from error

        return open_openvino(model, precision, request, sample, report, keep)
    if name == "tensorrt":
        from stpredict.engines.tensorrt import open_tensorrt

        return open_tensorrt(model, precision, request, sample, report, keep)
    if name == "compile":
        from stpredict.engines.compile import open_compile

        return open_compile(model, precision, request, sample, report, keep)
    from stpredict.engines.eager import open_eager

    return open_eager(model, precision, request, sample)
