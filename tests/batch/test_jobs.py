from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from results_to_draw import made_up

from stpredict.batch.jobs import Anonymity, find_jobs
from stpredict.errors import UsageError
from stpredict.prediction.job import Job
from stpredict.slides.lattice import lattice
from stpredict.slides.slide import Bounds, Mpp

SPOTS = lattice(Bounds(0, 0, 600, 400), Mpp(0.5, 0.5), 30.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    names = (
        "b.svs", "a.NDPI", "2024/a.svs", "2024/deep/a.tiff", "a.svs.txt", "scan.jpg", ".hidden.svs",
        "2024/b.GNAS.heatmap.tif", "2024/b.channels-2.ome.tif", ".trash/c.svs",
    )  # fmt: skip
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def quiet(_: str) -> None:
    pass


def test_a_folder_is_searched_and_its_structure_kept(folder):
    lines: list[str] = []
    out = Path("out")
    jobs = find_jobs([str(folder)], out, lines.append)
    assert jobs == [
        Job(folder / "a.NDPI", out / "a.h5ad"),
        Job(folder / "b.svs", out / "b.h5ad"),
        Job(folder / "2024/a.svs", out / "2024/a.h5ad"),
        Job(folder / "2024/deep/a.tiff", out / "2024/deep/a.h5ad"),
    ]
    assert [line.split(": ", 1)[1] for line in lines] == [
        "passed over 1 file: .jpg, not a slide's (name them to try them)",
        "passed over 1 file: .txt, not a slide's (name them to try them)",
        "passed over 1 file: hidden",
        "passed over 2 files: pictures that stpredict drew",
    ]


def test_what_the_program_wrote_is_not_taken_for_slides(tmp_path):
    for name in ("a.svs", "a.h5ad", "a.GNAS.overlay.tif", "a.GNAS.overlay.png", "a.GNAS.overlay.json"):
        (tmp_path / name).touch()
    lines: list[str] = []
    assert [job.slide.name for job in find_jobs([str(tmp_path)], tmp_path, lines.append)] == ["a.svs"]
    assert [line.split(": ", 1)[1] for line in lines] == [
        "passed over 3 files: pictures that stpredict drew",
        "passed over 1 file: results",
    ]
    with pytest.raises(UsageError, match="a result, not a slide; `stpredict render` draws it"):
        find_jobs([str(tmp_path / "a.h5ad")], tmp_path, quiet)


def test_patterns_and_names_go_straight_into_the_output_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert [job.slide for job in find_jobs(["*.svs"], Path("o"), quiet)] == [Path("b.svs")]
    assert len(find_jobs(["**/deep/*"], Path("o"), quiet)) == 1
    (folder / "c[1].svs").touch()
    (job,) = find_jobs(["c[1].svs"], Path("o"), quiet)
    assert job == Job(Path("c[1].svs"), Path("o/c[1].h5ad"))
    assert len(find_jobs(["b.svs", "b.svs"], Path("o"), quiet)) == 1


def test_a_list_names_slides_with_their_mpp_and_folder(folder):
    text = "\ufeffslide,mpp,mask,out\nslides/b.svs,0.25,b.geojson,first\n /data/c.svs ,,,\n"
    path = folder.parent / "list.csv"
    path.write_text(text, encoding="utf-8")
    assert find_jobs([f"@{path}"], Path("o"), quiet) == [
        Job(folder / "b.svs", folder.parent / "first" / "b.h5ad", 0.25, folder.parent / "b.geojson"),
        Job(Path("/data/c.svs"), Path("o/c.h5ad")),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "needs a line of column names"),
        ("path\na.svs\n", "needs a line of column names"),
        ("slide,mmp\na.svs,1\n", "needs a line of column names"),
        ("slide,mpp\na.svs,fine\n", "line 2: mpp 'fine' is not a positive number"),
        ("slide,mpp\na.svs,0\n", "line 2: mpp '0' is not a positive number"),
        ("slide,mpp\na.svs,1\nb.svs,-1\n", "line 3: mpp '-1' is not a positive number"),
        ("slide,mpp\na.svs,nan\n", "line 2: mpp 'nan' is not a positive number"),
        ("slide,mpp\na.svs,1\n,1\n", "line 3: names no slide"),
        ("slide\na.svs\nb/a.svs\n", "would both be written to"),
        ("slide,mask\na.svs,one.geojson\na.svs,two.geojson\n", "a.svs is named twice, with another mpp or mask"),
    ],
)
def test_lists_that_make_no_sense(tmp_path, text, says):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UsageError, match=says):
        find_jobs([f"@{tmp_path / 'list.csv'}"], Path("o"), quiet)


def test_nothing_found_is_an_error(tmp_path):
    for argument, says in (
        (str(tmp_path), "holds no slides"),
        (f"{tmp_path}/*.svs", "no file has such a name"),
        (f"@{tmp_path}/none.csv", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=says):
            find_jobs([argument], Path("o"), quiet)


def test_linked_folders_are_named_and_not_followed(folder):
    (folder / "loop").symlink_to(folder)
    lines: list[str] = []
    assert len(find_jobs([str(folder)], Path("o"), lines.append)) == 4
    assert any("loop: a link to a folder, not followed" in line for line in lines)


def test_anonymous_slides_lie_side_by_side_and_no_folder_of_theirs_is_named(folder):
    (folder / "loop").symlink_to(folder)
    lines: list[str] = []
    jobs = find_jobs([str(folder)], Path("o"), lines.append, Anonymity(folder.parent / "names.csv", keep=False))
    assert len({job.result for job in jobs}) == 4
    assert {job.result.parent for job in jobs} == {Path("o")}
    assert all(job.result.stem == job.name == str(job.shown) for job in jobs)
    assert any("passed over 1 file: a link to a folder" in line for line in lines)
    assert not any("loop" in line or "2024" in line for line in lines)


def results_of(folder: Path, *arguments: object, out: Path = Path("o")) -> dict[str, str]:
    """The name of each slide's result."""
    jobs = find_jobs([str(argument) for argument in arguments or (folder,)], out, quiet)
    return {job.slide.name: job.result.name for job in jobs}


def test_slides_that_differ_in_the_suffix_alone_have_results_of_their_own(tmp_path):
    for name in ("case1.svs", "case1.tif", "case2.ndpi", "case2.svs"):
        (tmp_path / name).touch()
    apart = {"case1.svs": "case1.h5ad", "case1.tif": "case1.tif.h5ad", "case2.ndpi": "case2.h5ad"}
    assert results_of(tmp_path) == {**apart, "case2.svs": "case2.svs.h5ad"}
    named = sorted(tmp_path.glob("case1.*"), reverse=True)
    assert results_of(tmp_path, *named) == {"case1.svs": "case1.h5ad", "case1.tif": "case1.tif.h5ad"}
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "case1.svs").touch()
    with pytest.raises(UsageError, match=r"case1\.svs and .*case1\.svs would both be written"):
        find_jobs([str(tmp_path / "case1.svs"), str(tmp_path / "deep/case1.svs")], Path("o"), quiet)


def test_a_result_stays_its_slide_s_whatever_lies_beside_it_later(tmp_path):
    slides, out = tmp_path / "in", tmp_path / "out"
    slides.mkdir()
    out.mkdir()
    (slides / "case1.svs").touch()
    assert results_of(slides, out=out) == {"case1.svs": "case1.h5ad"}
    made_up(out / "case1.h5ad", SPOTS, np.ones((len(SPOTS), 2)))  # of case1.svs
    (slides / "case1.ndpi").touch()  # which would come first
    assert results_of(slides, out=out) == {"case1.ndpi": "case1.ndpi.h5ad", "case1.svs": "case1.h5ad"}
    assert results_of(slides, slides / "case1.ndpi", out=out) == {"case1.ndpi": "case1.ndpi.h5ad"}
    (out / "case1.ndpi.h5ad.parts").mkdir()  # begun, and interrupted
    (slides / "case1.svs").unlink()
    assert results_of(slides, out=out) == {"case1.ndpi": "case1.ndpi.h5ad"}


def test_a_slide_is_not_taken_for_one_that_is_called_after_it(tmp_path):
    for name in ("case1.svs", "case1.svs.tif"):
        (tmp_path / name).touch()
    out = tmp_path / "out"
    out.mkdir()
    both = {"case1.svs": "case1.h5ad", "case1.svs.tif": "case1.svs.h5ad"}
    assert results_of(tmp_path, out=out) == both
    (out / "case1.svs.h5ad.lease").touch()
    assert results_of(tmp_path, out=out) == both
    made_up(out / "case1.svs.h5ad", SPOTS, np.ones((len(SPOTS), 2)), slide="case1.svs.tif")
    assert results_of(tmp_path, out=out) == both


def test_one_of_several_folders_without_slides_costs_only_itself(folder):
    (folder.parent / "empty").mkdir()
    lines: list[str] = []
    folders = [str(folder.parent / "empty"), str(folder)]
    assert len(find_jobs(folders, Path("o"), lines.append)) == 4
    assert any("empty: holds no slides" in line for line in lines)
    with pytest.raises(UsageError, match="there are no slides in these folders"):
        find_jobs(folders[:1] * 2, Path("o"), quiet)


def test_anonymous_slides_that_differ_in_the_suffix_are_two(tmp_path):
    for name in ("case1.svs", "case1.tif"):
        (tmp_path / name).touch()
    anonymity = Anonymity(tmp_path / "names.csv", keep=False)
    assert len({job.result for job in find_jobs([str(tmp_path)], Path("o"), quiet, anonymity)}) == 2
