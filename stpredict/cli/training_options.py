"""The options of `train`, by topic. `compare` has some of them, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stpredict.evaluation import MIN_DEPTH

# Data and output.
Dataset = Annotated[Path, typer.Argument(help="Folder of measured sections, or a .tiles.h5 file.", show_default=False)]
ModelFile = Annotated[
    Path, typer.Option("-o", "--out", help="The model file to write, NAME.safetensors.", show_default=False)
]
PatchMpp = Annotated[float | None, typer.Option(help="Micrometres per pixel.", show_default="the sections'")]
PatchUm = Annotated[
    float | None,
    typer.Option(
        help="Side of a patch, um. Needs --mpp; the two say how many pixels a patch has.",
        show_default="224 px",
    ),
]
Licence = Annotated[str, typer.Option(help="Licence of the data, for the model's card.")]
AnonymousCard = Annotated[
    bool,
    typer.Option(
        "--anonymous", help="Number sections and patients in the model's card; which is which stays in MODEL.run/."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BeginAnew = Annotated[bool, typer.Option("--overwrite", help="Begin anew.")]

# Which network, and how it is trained.
Arch = Annotated[
    str,
    typer.Option(
        help="m2ort-small, -base or -large, with -cross as in the released code; m2ost; triplex, -bc2 or -scc; "
        "histogene, -4 or -224; hist2st or -224; hipt; istar; stnet, resnet50, vit-b16, deepspace, crossvit-small "
        "or -base; bleep or egn; or dictionary. Options stand behind it, as in m2ort-small:levels=0+1:pool=mean."
    ),
]
Objective = Annotated[
    str,
    typer.Option(
        help="residuals, nb, poisson, mse on ln(1 + CPM) as in the papers, or standardised-mse, over each spread."
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        help="The head on a dictionary or an encoder: ridge, or linear, which takes any --objective.",
        show_default="ridge",
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        help="How to train: ours; published, as the system's own paper; or m2ort-paper, which trains all alike."
    ),
]
Epochs = Annotated[
    int,
    typer.Option(min=0, help="Maximum of epochs on measured spots; validation chooses. 0: dense teaching alone."),
]
BatchSize = Annotated[int, typer.Option(min=1)]
LearningRate = Annotated[float, typer.Option(help="Peak learning rate on measured spots.")]
Accumulate = Annotated[
    int,
    typer.Option(
        min=1,
        help="Compute each batch in so many parts, if it does not fit into memory; batch norms see one part at a time.",
    ),
]
BALANCES: tuple[Literal["sections", "patients"], ...] = ("sections", "patients")
BalanceOption = Annotated[
    str | None,
    typer.Option(
        "--balance",
        help="Let sections, or patients, count alike in each epoch, however many spots they have.",
        show_default="spots count alike",
    ),
]
StainJitter = Annotated[float, typer.Option(min=0, help="Spread of the random factors on the stains.")]

# Tests on held-out tissue.
Folds = Annotated[
    str,
    typer.Option(
        help="What to hold out in turn to test: each patient, each section, none, or a number of parts by patient."
    ),
]
HoldOut = Annotated[
    list[str] | None,
    typer.Option(help="Further patients or sections to hold out in turn, separated by commas.", show_default=False),
]
AllowPatientLeak = Annotated[
    bool, typer.Option("--allow-patient-leak", help="Hold out sections of patients that are also trained on.")
]
Protocol = Annotated[
    str | None,
    typer.Option(
        help="Split, choose genes, label and score as a paper does, leaks included: m2ort or triplex. Sets folds, "
        "panel and objective, but not how the network is trained.",
        show_default="none",
    ),
]
MinDepth = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Leave out held-out spots with fewer counts when scoring.",
        show_default=f"{MIN_DEPTH}, or 1 with a protocol",
    ),
]

# What a call does of a run.
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Write nothing; say what would be trained and tested, and what memory, disk and time it would take.",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        help="Train no more than these held-out parts, as fold-1,fold-2; calls of one run may do so at the same time, "
        "and the call without this gathers them.",
        show_default=False,
    ),
]

# Genes and expression.
GenesFile = Annotated[
    Path | None, typer.Option(help="The genes to predict: .txt, .csv or .npy.", show_default="chosen by --panel")
]
PanelRule = Annotated[
    str | None,
    typer.Option(
        help="How to choose genes: variance, in every section; mean, of counts; variable, beyond what their mean "
        "explains; or coverage, variable in the sections that measured them, if enough did.",
        show_default="variance, or coverage where sections measured different genes",
    ),
]
MinSections = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With coverage: how many training sections must have measured a gene.",
        show_default="a quarter, of three patients or of half of the patients",
    ),
]
PanelSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Genes to choose; by variance, they are drawn from those that qualify.",
        show_default="all, 250 by mean and variable, or 2,000 by coverage",
    ),
]
GenesRequired = Annotated[
    list[str] | None,
    typer.Option(help="Genes that must be in the panel, separated by commas.", show_default=False),
]
Normalisation = Annotated[
    str | None,
    typer.Option(
        help="ln(1 + x) of counts per million of a spot's counts (total), or of its panel's counts (panel, as in the "
        "released M2ORT code); or per 10,000 of them (1e4, panel-1e4).",
        show_default="total, or the protocol's",
    ),
]
CountsOnly = Annotated[
    Path | None,
    typer.Option(
        help="Further sections, to learn how genes vary together; those of HER2ST need no images. "
        "For a dictionary or an encoder with a ridge head.",
        show_default="none",
    ),
]
SmoothLabels = Annotated[
    bool, typer.Option("--smooth-labels", help="Train on means over neighbouring spots, as ST-Net and TRIPLEX do.")
]

# Encoders and weights.
Encoder = Annotated[
    Path | None,
    typer.Option(
        help="A frozen encoder to read instead of --arch: .pt2 of torch.export.save, TorchScript, or a timm Vision "
        "Transformer's weights. Needs --mpp.",
        show_default="none",
    ),
]
EncoderMean = Annotated[
    str | None,
    typer.Option(
        help="Mean of RGB in 0 to 1 that it was trained with.",
        show_default="of config.json beside timm weights, or ImageNet's",
    ),
]
EncoderStd = Annotated[str | None, typer.Option(help="Their standard deviation.", show_default="as the mean")]
EncoderLicence = Annotated[
    str | None, typer.Option(help="Its licence, for the model's card.", show_default="as the mean, or not stated")
]
Stain = Annotated[
    str | None, typer.Option(help="How patches are normalised before the encoder: macenko.", show_default="not")
]
EncoderWeights = Annotated[
    Path | None,
    typer.Option(
        help="Weights, under torchvision's names, with which the trunk of triplex, stnet, resnet50, vit-b16, "
        "deepspace, a crossvit, bleep or egn begins; --encoder-licence states their licence.",
        show_default="taught colour and texture of unlabelled tissue",
    ),
]
RegionWeights = Annotated[
    Path | None,
    typer.Option(
        help="Weights of HIPT's upper network, ViT4K, for hipt and istar, beside those of the lower, ViT256, by "
        "--encoder-weights. Needs --mpp.",
        show_default=False,
    ),
]
AttachTeacher = Annotated[
    bool,
    typer.Option(
        "--attach-teacher", help="Let TRIPLEX's fused head move towards the other three, as its released code does."
    ),
]

# Teaching on unlabelled tissue.
Unlabelled = Annotated[
    int,
    typer.Option(
        min=0, help="Unlabelled patches of tissue, for a network to learn from or a dictionary to find windows in."
    ),
]
Teach = Annotated[
    str | None,
    typer.Option(
        help="What a network learns from unlabelled tissue: dense, for each token of m2ort, m2ost or triplex what a "
        "dictionary sees there; or ridge, for each patch what ridge on colour and texture says.",
        show_default="dense for m2ort and m2ost, ridge for others",
    ),
]
Teacher = Annotated[
    Path | None,
    typer.Option(
        help="An encoder that teaches each token in place of a dictionary, a file as --encoder takes, which gives maps "
        "or tokens; --encoder-mean, -std and -licence describe it.",
        show_default="none",
    ),
]
TeachPatches = Annotated[int, typer.Option(min=0, help="How many of them to see in all, with repetition.")]
TeachLearningRate = Annotated[
    float | None,
    typer.Option(help="Peak learning rate on unlabelled tissue.", show_default="1e-3 dense, 5e-4 by ridge"),
]
