"""From files to samples: cards, readers, intensity, splits and checks. Plain numpy, no torch."""

from samadapt.data.cards import Card, cards_folder, list_cards, load_card
from samadapt.data.checks.survey import check_dataset
from samadapt.data.dataset import Dataset, SliceList, open_dataset
from samadapt.data.findings import Finding
from samadapt.data.formats.base import (
    FormatReader,
    read_image,
    readers,
    register_reader,
    write_prediction,
)
from samadapt.data.intensity import IntensityRule, make_intensity, to_rgb
from samadapt.data.types import Case, Sample, SliceRef, Volume

__all__ = [
    "Card",
    "Case",
    "Dataset",
    "Finding",
    "FormatReader",
    "IntensityRule",
    "Sample",
    "SliceList",
    "SliceRef",
    "Volume",
    "cards_folder",
    "check_dataset",
    "list_cards",
    "load_card",
    "make_intensity",
    "open_dataset",
    "read_image",
    "readers",
    "register_reader",
    "to_rgb",
    "write_prediction",
]
