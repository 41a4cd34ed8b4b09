from __future__ import annotations

import pytest
from pages_to_open import hostile_report, report_of
from results_to_draw import predict


@pytest.fixture(scope="module")
def result(tiny_model, tmp_path_factory):
    return predict(tiny_model, tmp_path_factory.mktemp("out"), genes=("GNAS", "<&>", "DDX5"))


@pytest.fixture(scope="module")
def page(result, tmp_path_factory):
    return report_of(result, tmp_path_factory.mktemp("report") / "page.html")


@pytest.fixture(scope="module")
def hostile(result, tmp_path_factory):
    return hostile_report(result, tmp_path_factory.mktemp("hostile") / "page.html")
