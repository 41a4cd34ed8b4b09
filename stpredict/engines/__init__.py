"""Engines: one network, run in different ways. Each takes uint8 patches in batches of one size and yields float32.

A file per engine, one for the choice among them, one for their numeric check. They import `model` and what lies below.
"""

from __future__ import annotations

import sys

#: OpenVINO's converter and nncf report their use over the network, unless this module is missing.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
