"""Published models and encoders that can be imported: the facts about each, and how to import it. None was run here.

Statements of their authors or hosts were read in November 2026; the program asks for none over a network. Sizes and
costs are counted in networks that tests/model builds with the published widths and depths. They are left out if these
are not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

TRAIN = "stpredict train DATASET -o MODEL.safetensors --encoder FILE --mpp"
NOT_KNOWN = "not known here"
#: Published models that give no value for a spot, by their names in small letters, and why `predict` cannot run them.
UNREAD = {
    "sequoia": "it says one thing of 100 tiles together and was trained on bulk samples, so it was never shown a spot"
}


@dataclass(frozen=True)
class Entry:
    """One published model or encoder; None for facts that its authors do not state.

    `genes` says how many and which; `millions` counts the parameters of its head and encoder, as far as they are known;
    `cost` is billions of multiplications per spot.
    """

    name: str
    kind: Literal["model", "encoder"]
    tissue: str
    genes: str
    licence: str
    commercial: bool | None
    gated: bool | None
    where: str
    millions: Mapping[str, float]
    cost: float | None
    bring_in: str

    @property
    def size(self) -> str:
        """Parameters, and gigabytes in fp32: files in half precision are half as large."""
        told = (f"{part} of {count:,.4g} million parameters" for part, count in self.millions.items())
        gigabytes = sum(self.millions.values()) * 4e6 / 1e9
        return f"{', '.join(told)}, {gigabytes:.2g} GB in fp32" if self.millions else f"size {NOT_KNOWN}"

    def lines(self) -> Iterator[str]:
        """What it is, what it requires of you, where it is published, and how to import it."""
        may = {True: "commercial use allowed", False: "no commercial use", None: "commercial use not stated"}
        gate = {True: "gated", False: "not gated", None: "gate not known"}
        cost = f"cost {NOT_KNOWN}" if self.cost is None else f"about {self.cost:g} GMAC a spot"
        yield f"{self.name} ({self.kind}): {self.tissue}{'; ' if self.genes else ''}{self.genes}"
        yield f"    {self.licence}; {may[self.commercial]}; {self.where}, {gate[self.gated]}"
        yield f"    {self.size}; {cost}"
        yield f"    {self.bring_in}"


def encoder(
    name: str, licence: str, commercial: bool | None, gated: bool | None, where: str, millions: float | None,
    cost: float | None, mpp: str, tissue: str = "any H&E, by a head that you train",
) -> Entry:  # fmt: skip
    size = {} if millions is None else {"encoder": millions}
    return Entry(name, "encoder", tissue, "", licence, commercial, gated, where, size, cost, f"{TRAIN} {mpp}")


KNOWN: tuple[Entry, ...] = (
    Entry(
        "path2space", "model", "breast cancer", "14,068 genes by symbol", "Apache-2.0; its encoder CTransPath GPL-3",
        None, False, "Zenodo 20174301", {"head": 1757, "encoder": 27.5}, 6.1,
        "stpredict models import-known path2space --head mlp_ensemble.tar.gz --encoder ctranspath.pth "
        "--genes genes.txt",
    ),
    Entry(
        "deepspot-m", "model", "many tissues", "about 19,360 genes by symbol", "CC-BY-NC-SA-4.0", False, True,
        "Hugging Face ratschlab/DeepSpotM", {"its tuned Midnight": 1137}, 290,
        "stpredict models import-known deepspot-m --head model.safetensors",
    ),
    Entry(
        "stpath", "model", "17 organs", "38,982 genes by Ensembl id", "none stated: all rights reserved", False, False,
        "Hugging Face tlhuang/STPath", {"head": 49, "gated encoder Prov-GigaPath": 1135}, 223,
        "stpredict models import-known stpath --head stfm.pth --encoder gigapath.bin --genes symbol2ensembl.json",
    ),
    Entry(
        "deepspot", "model", "several tissues, a file each", "5,000 genes by symbol",
        "MIT (code); the record's own not known", None, False, "Zenodo 15322099", {"heads": 84.7}, None,
        "stpredict models import-known deepspot --head final_model.pkl --encoder FILE "
        "--genes info_highly_variable_genes.csv --mpp UM --tile-um UM",
    ),
    Entry(
        "histoprism", "model", "29 cancers", "38,982 genes by Ensembl id",
        "CC-BY-NC-4.0; its gated encoder UNI is non-commercial", False, False,
        "GitHub susuhu/HistoPrism, checkpoints_paper", {"gated encoder UNI": 303}, 61,
        "stpredict models import-known histoprism --head best_model.pt --encoder uni.bin --genes stpath_genes.yaml "
        "--organ CODE",
    ),
    Entry(
        "SimpleP2G", "model", "brain, kidney, breast, lung, prostate, a file each", "200 genes by symbol each",
        "MIT; its gated encoder Virchow2 is non-commercial", False, False, "Hugging Face king159/SimpleP2G",
        {"gated encoder Virchow2": 631}, 166,
        "stpredict models import --encoder virchow2.pt2 --head HEAD.safetensors --genes genes.txt "
        '--unit "log2(raw + 1)" --mpp UM --tile-um UM --activation NAME',
    ),
    encoder("DistillPath-IS16-HOpt0", "its own not known; its teacher Apache-2.0", None, None,
            "Hugging Face RamonK", 21.7, 4.6, "UM"),
    encoder("DistillPath-KS16-HOpt0", "from non-commercial weights", False, None,
            "Hugging Face RamonK", 21.7, 4.6, "UM"),
    encoder("GigaPath-Flash", "Apache-2.0; its gate says research", None, True,
            "Hugging Face, GigaPath-Flash", None, None, "UM"),
    encoder("H-optimus-0", "Apache-2.0", True, False, "Hugging Face bioptimus/H-optimus-0", 1135, 296, "0.5"),
    encoder("Virchow", "Apache-2.0", True, True, "Hugging Face paige-ai/Virchow", 631, 164, "0.5"),
    encoder("Hibou-B", "Apache-2.0", True, True, "Hugging Face histai/hibou-b", 85.7, 24, "0.5"),
    encoder("Hibou-L", "Apache-2.0", True, True, "Hugging Face histai/hibou-L", 303, 81, "0.5"),
    encoder("Midnight-12k", "MIT", True, True, "Hugging Face kaiko-ai/midnight", 1137, 291, "0.5"),
    encoder("HNE2Space ResNet-50", "Apache-2.0", True, False,
            "Hugging Face mkkim032599/HNE2Space", 23.5, 4.1, "UM"),
    encoder("CTransPath", "GPL-3; who hosts it adds non-commercial academic", False, False,
            "CTransPath's repository", 27.5, 4.5, "UM"),
)  # fmt: skip
