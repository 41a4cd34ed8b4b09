from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from stpredict.errors import SlideError, StpredictError, UsageError
from stpredict.slides.lattice import given_spots
from stpredict.storage.text_tables import read_lines

SPOTS = [[1.5, 2.0], [30.0, 4.25]]


def spots_of(path: Path, text: str | bytes) -> list[list[float]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return given_spots(path, (10_000, 10_000), 50).centres.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "x,y\n1.5,2\n30,4.25\n",
        "\ufeffx,y\r\n1.5,2\r\n30,4.25\r\n",
        "x;y\n1,5;2\n30;4,25\n",
        "sep=;\nx;y\n1,5;2,0\n30,0;4,25\n",
        "x\ty\n1,5\t2\n30\t4,25\n",
        "x|y\n1.5|2\n30|4.25\n",
        "x y\n1.5 2\n30   4.25\n",
        "X,Y\n1.5,2\n30,4.25\n",
        "Y ,name, X\n2,a,1.5\n4.25,b,30\n",
        '"x","y"\n"1.5","2"\n"30","4.25"\n',
        '"x","y"\n"1,5","2"\n"30","4,25"\n',
        "x,y,,\n1.5,2,,\n30,4.25\n,,,\n,,,\n",
        "\nx,y\n\n1.5,2\n\n30,4.25\n\n",
        "x,X,y\n1.5,7,2\n30,7,4.25\n",
        ",x,y\n0,1.5,2\n1,30,4.25\n",
        "x,y\n1.5e0,+2\n3e1,4.25\n",
        "x,y\n1.5,2\n30,4.25\n".encode("utf-16"),
        "x,y\n1.5,2\n30,4.25\n".encode("utf-16-le"),
        gzip.compress(b"x,y\n1.5,2\n30,4.25\n", mtime=0),
    ],
)
def test_spots_as_spreadsheets_r_and_pandas_write_them(tmp_path: Path, text: str | bytes):
    assert spots_of(tmp_path / "spots.csv", text) == SPOTS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x,y\n1,2\n3,4,5\n", "line 3: has 3 cells, and the header 2"),
        ("x,y\na,1,2\nb,3,4\n", "line 2: has 3 cells, and the header 2"),
        ("x,y\n1,5,2,5\n", "line 2: has 4 cells, and the header 2; write numbers with a point"),
        ("x,y,\n1,2,3\n", "line 2: has 3 cells"),
        ("x,y,x\n1,2,3\n", "names the column x more than once"),
        ("name,x,y,name\na,1,2,b\n", "names the column name more than once"),
        ("X,y,X\n1,2,3\n", "names the column x more than once"),
        ("x;y\n1,234;2,345\n", "'1,234' may be 1234 or 1.234"),
        ("x;y\n1,5;2.5\n", "have points and commas"),
        ('x,y\n"1,234.5",2\n', "without separators of thousands, not '1,234.5'"),
        ("x;y\n1.234.567;2\n", "without separators of thousands"),
        ("x;y\n1 234;2\n", "without separators of thousands"),
        ("x,y\n1_000,2\n", "without separators of thousands"),
        ("x,y\n1,\n2,3\n", "line 2: x and y must be numbers, and one is empty"),
        ("x,y\n1,2\n,\n3,4\n", "line 3: x and y must be numbers, and one is empty"),
        ("x,y\n1,2\n3\n", "line 3: x and y must be numbers, and one is empty"),
        ("x,y\n1,#N/A\n", "must be numbers, not '#N/A'"),
        ("x,y\n1,2\nnan,3\n", "the first in line 3"),
        ("x,y\n\n1,2\n3,99999\n", "the first in line 4"),
        ('x,y\n1,"2\n3,4\n', "cannot be read as CSV"),
        ("1,2\n3,4\n", "needs a header line with the columns x and y"),
        ("x\n1\n", "needs a header line with the columns x and y"),
        ("", "needs a header line with the columns x and y"),
        ("x,y\n,,\n", "holds no spots"),
        (b"x,y,n\xe4me\n1,2,a\n", "it is not UTF-8 text"),
        (b"PK\x03\x04 a workbook", "a spreadsheet's own format; save it as CSV"),
        (gzip.compress(b"x,y\n1,2\n", mtime=0)[:-9], "it is packed, and damaged"),
    ],
)
def test_spots_that_cannot_be_taken_at_their_word_are_refused(tmp_path: Path, text: str | bytes, says: str):
    with pytest.raises((UsageError, SlideError)) as refused:
        spots_of(tmp_path / "spots.csv", text)
    assert says in str(refused.value)


def test_lines_keep_their_numbers_and_columns_their_names(tmp_path: Path):
    (tmp_path / "t.csv").write_text('Section,Note,PATIENT\nS1,"two\nlines",P1\n\nS2,,P2\n')
    found = list(read_lines(tmp_path / "t.csv", ("section", "patient"), "needs a header"))
    assert [(line.number, line.cells) for line in found] == [
        (3, {"section": "S1", "Note": "two\nlines", "patient": "P1"}),
        (5, {"section": "S2", "Note": "", "patient": "P2"}),
    ]
    with pytest.raises(StpredictError, match=r"gone\.csv: cannot be read"):
        list(read_lines(tmp_path / "gone.csv", ("x",), "needs a header"))
