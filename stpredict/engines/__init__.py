"""Engines: one network, run in different ways. Each takes uint8 patches in batches of one size and yields float32.

A file per engine, their choice and their numeric check. They import `model` and what lies below it.
"""

from __future__ import annotations

import sys

#: OpenVINO's converter and nncf would report their use over the network; without this module they do not.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
