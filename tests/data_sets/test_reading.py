"""Which sections are read: by a condition, by species, and with broken ones left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from stpredict.data.counts import in_memory
from stpredict.data.genes import name_genes
from stpredict.data.reading import (
    Broken,
    BrokenSectionsError,
    Reading,
    about_left_out,
    demand_whole,
    read_broken,
    read_each,
    readable,
    write_broken,
)
from stpredict.data.section import Section
from stpredict.data.species import of_one_species, tell_species
from stpredict.data.where import parse_where
from stpredict.errors import DatasetError, SlideError, UsageError
from stpredict.slides.slide import Mpp

FACTS = {
    "a": {"organ": "Breast", "st_technology": "Visium HD", "nb_genes": 3, "disease": None},
    "b": {"organ": "Lung", "st_technology": "Xenium", "nb_genes": 12},
    "c": {"organ": "breast", "st_technology": "Visium", "nb_genes": 5, "disease": "Cancer"},
}
HUMAN = [f"GENE{i}" for i in range(25)]
MOUSE = [f"Gene{i}" for i in range(30)]


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("organ=Breast", "ac"),
        ("organ=Breast and st_technology=Visium", "c"),
        ("st_technology in (Visium HD, 'Xenium')", "ab"),
        ("not organ=breast or nb_genes>4", "bc"),
        ("nb_genes >= 5 and (organ == Lung)", "b"),
        ("disease=''", "ab"),
        ("disease!=''", "c"),
        ("nb_genes<12", "ac"),  # as numbers, not as texts
    ],
)
def test_a_condition_chooses_sections(text: str, chosen: str):
    assert parse_where(text).chosen(FACTS) == list(chosen)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("organ", "a comparison was expected at 'its end'"),
        ("organ=", "a value was expected at 'its end'"),
        ("(organ=Lung", r"\) was expected"),
        ("organ=Lung species=Mouse", "'and' or 'or' was expected at '='"),
        ("__import__('os')", r"a comparison was expected at '\('"),
        ("sex=F", "no column sex; it has disease, nb_genes, organ, st_technology"),
        ("organ=Skin", "holds for none of 3 sections, of which organ is Breast, Lung, breast"),
    ],
)
def test_what_is_no_condition_is_refused_in_words(text: str, why: str):
    with pytest.raises(UsageError, match=why):
        parse_where(text).chosen(FACTS)


def section(name: str, genes: list[str], species: str = "") -> Section:
    counts = csr_array(np.arange(4 * len(genes), dtype=np.float32).reshape(4, -1))
    spots = np.array([(x, y) for x in (0, 100) for y in (0, 100)], dtype=float)
    return Section(
        name, "p", Path(f"{name}.tif"), Mpp(0.5, 0.5), list("abcd"), spots, genes, in_memory(counts), species=species
    )


def test_species_are_told_by_how_genes_are_spelt():
    assert tell_species([*HUMAN, "C1orf43", "HLA-A", "MT-CO1"]) == "human"
    assert tell_species([*MOUSE, "mt-Co1", "H2-K1"]) == "mouse"
    assert tell_species([f"ENSMUSG{i:011}" for i in range(20)]) == "mouse"
    assert tell_species(HUMAN[:5]) == tell_species([*HUMAN, *MOUSE]) == ""


def test_several_species_are_refused_unless_asked_for():
    both = [section("h", HUMAN), section("m", MOUSE), section("n", [*MOUSE, "X"], species="mouse")]
    with pytest.raises(UsageError, match=r"several species \(1 of human, 2 of mouse\).*--species mouse takes these"):
        of_one_species(both, Reading())
    assert [one.name for one in of_one_species(both, Reading(species="human"))] == ["h"]
    assert [one.name for one in of_one_species(both, Reading(species="mouse"))] == ["m", "n"]
    assert len(of_one_species(both, Reading(species="all"))) == 3
    with pytest.raises(UsageError, match="--species human: no section is of it; their genes and tables say mouse"):
        of_one_species(both[1:], Reading(species="human"))
    with pytest.raises(UsageError, match="--species rat: choose human, mouse, all"):
        Reading(species="rat")


def test_orthologs_join_species(tmp_path: Path):
    table = tmp_path / "orthologs.csv"
    table.write_text("mouse,human\n" + "".join(f"Gene{i},GENE{i}\n" for i in range(10)) + "Gene11,GENE5\nGene5,GENE5\n")
    human, mouse = of_one_species([section("h", HUMAN), section("m", MOUSE)], Reading(orthologs=table))
    assert human.genes == HUMAN
    assert mouse.genes == [f"GENE{i}" for i in range(10) if i != 5]  # GENE5 has two
    kept = [i for i in range(10) if i != 5]
    np.testing.assert_array_equal(mouse.counts.rows().toarray(), section("m", MOUSE).counts.rows().toarray()[:, kept])
    assert mouse.notes[-1].startswith("21 genes have no ortholog and are left out: Gene5,")
    table.write_text("mouse,human,score\nGene1,GENE1,9\n")
    with pytest.raises(DatasetError, match="has 3 columns, and two are needed"):
        of_one_species([section("m", MOUSE)], Reading(orthologs=table))


def test_all_broken_sections_are_named_at_once(tmp_path: Path):
    errors = {"b": DatasetError("b.h5ad: is damaged."), "d": SlideError("d.tif: cannot be opened.")}

    def read(name: str) -> Section:
        if name in errors:
            raise errors[name]
        return section(name, HUMAN)

    sections, broken = readable(lambda: read_each("abcd", str, read))
    assert ([one.name for one in sections], [one.section for one in broken]) == (["a", "c"], ["b", "d"])
    with pytest.raises(
        BrokenSectionsError, match=r"^2 sections .* b \(b.h5ad: is damaged\); d \(d.tif: .*--skip-broken"
    ):
        demand_whole(sections, broken)
    with pytest.raises(SlideError, match=r"^d.tif: cannot be opened.$"):
        demand_whole(sections, broken[1:])
    assert demand_whole(sections, []) == sections
    write_broken({one.section: one.why for one in broken}, tmp_path / "broken.csv")
    assert (tmp_path / "broken.csv").read_text().splitlines() == [
        "section,why",
        "b,b.h5ad: is damaged.",
        "d,d.tif: cannot be opened.",
    ]
    assert read_broken(tmp_path / "broken.csv") == ["b", "d"]
    assert (
        about_left_out(["b", "d"], Path("t.csv"))
        == "2 sections could not be read and are left out: b, d; t.csv says why"
    )
    write_broken({}, tmp_path / "broken.csv")
    assert not (tmp_path / "broken.csv").exists()
    assert read_broken(tmp_path / "broken.csv") == []
    assert Broken("b", errors["b"]).why == "b.h5ad: is damaged."


def test_sections_share_the_names_of_their_genes():
    """A section's table names thousands, each time as new texts."""

    def read(number: int) -> Section:
        genes = [f"GENE{i}" for i in range(25 - number % 2)]
        return replace(section(str(number), genes), symbols={f"ENSG{i:011}": f"S{i}" for i in range(3)})

    sections = read_each(range(4), str, read)
    assert sections[0].genes == HUMAN
    assert sections[1].genes == HUMAN[:24]
    assert sections[2].genes is sections[0].genes
    assert sections[3].genes is sections[1].genes
    assert sections[0].genes[7] is sections[1].genes[7]
    assert all(one.symbols is sections[0].symbols for one in sections)
    assert sections[0].symbols == {"ENSG00000000000": "S0", "ENSG00000000001": "S1", "ENSG00000000002": "S2"}


def test_control_probes_are_no_genes():
    names = [
        "GNAS",
        "NegControlProbe_00042",
        "BLANK_0037",
        "antisense_ACE2",
        "UnassignedCodeword_0001",
        "NEGR1",
        "BLANK",
    ]
    genes, counts, notes = name_genes(names, None, csr_array(np.ones((2, 7), np.float32)))
    assert genes == ["GNAS", "NEGR1", "BLANK"]
    assert counts.shape == (2, 3)
    assert notes == (
        "4 control probes left out: BLANK_0037, NegControlProbe_00042, UnassignedCodeword_0001, antisense_ACE2",
    )


def test_a_section_keeps_what_else_is_known_of_it():
    (kept,) = of_one_species([replace(section("m", MOUSE), technology="Xenium")], Reading())
    assert (kept.species, kept.technology) == ("mouse", "Xenium")
