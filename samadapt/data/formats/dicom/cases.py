"""From the DICOM objects of a folder to cases: which images, by what name, with which mask.

1. Each series in a folder is a candidate for a case. But each file is a candidate of its own for
   pictures (X-ray, ultrasound), for several series of a single slice, and where masks are named
   after files.
2. Localizers, screenshots and single images beside a volume are left out.
3. A mask belongs to a candidate by its name or, for SEG and RTSTRUCT, by the series that the object
   refers to. A series without a mask is left out if a series beside it has one.
4. Where several volumes compete for one case, ``data.series`` chooses. Without it the case is an
   error that lists them.

One warning counts all files that are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from samadapt.data.findings import Finding, error_finding, fault, warning_finding
from samadapt.data.formats.base import Layout, ReaderOptions
from samadapt.data.formats.dicom.folder_contents import LABELS, DicomSeries, FolderContents
from samadapt.data.formats.dicom.mask_references import belongs_to
from samadapt.data.formats.dicom.series_choice import choose_series, listed, parse_choice
from samadapt.data.formats.shared.stored_picture import SUFFIXES as PICTURES
from samadapt.data.formats.shared.volume_patterns import files_by_name
from samadapt.data.types import Case

MASK_FOLDERS = ("labelsTr", "labels", "masks")
_IMAGE_FOLDERS = ("images", "imagesTr")
_MASK_ENDS = ("", "_mask", ".seg")  # of a mask's name, before its file name ending


@dataclass
class CaseCandidate:
    """What may become a case: a series, or one file of it.

    Attributes:
        series: the series.
        files: the files of the series, or the one file.
        image: the folder of the series, or the one file.
        name: name of the case.
        masks: the masks that belong to it.
        rivals: the candidates that compete for one case, this one included; empty if there is one.
        place: the folder that holds the rivals.
    """

    series: DicomSeries
    files: tuple[Path, ...]
    image: Path
    name: str = ""
    masks: list[Path] = field(default_factory=list)
    rivals: list[CaseCandidate] = field(default_factory=list)
    place: Path | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is one file, and not a whole series."""
        return self.image == self.files[0]


class CaseBuilder:
    """Turns the contents of a folder into cases.

    Args:
        root: the data set's folder.
        options: patterns and the choice of series.
        contents: what lies in the folder.
        layout: cases and findings are added to it.
    """

    def __init__(
        self, root: Path, options: ReaderOptions, contents: FolderContents, layout: Layout
    ) -> None:
        self.root, self.options, self.layout = root, options, layout
        self.contents = contents
        self.terms = parse_choice(options.series)
        self.left_out: Counter[str] = Counter(contents.others)
        """Number of files that are not read, by kind."""
        self.used: set[Path] = set()
        """Masks that belong to a candidate."""
        self.candidates: list[CaseCandidate] = []
        self.several: dict[str, Finding | None] = {}
        """By name, cases that compete with others: the error for the first of them, None for the
        others, so that it is reported once."""

    def arrange(self) -> None:
        """Add the cases to the layout.

        Raises:
            FindingError: a pattern matches nothing, or no series fits ``data.series``.
        """
        self._make_candidates()
        if self.options.label:
            self._masks_by_pattern()
        else:
            self._masks_by_reference()
            self._masks_by_name()
        self._leave_out_side_images()
        self._choose()
        self._make_cases()
        self._report()

    def _make_candidates(self) -> None:
        """Find and name the candidates; ``data.image`` restricts them to what it matches."""
        chosen: dict[Path, str] | None = None
        if self.options.image:
            chosen = {
                path: name for name, path in files_by_name(self.root, self.options.image).items()
            }
        by_folder: dict[Path, list[DicomSeries]] = {}
        for item in self.contents.series:
            by_folder.setdefault(item.folder, []).append(item)
        for folder, series in by_folder.items():
            self.candidates += self._of_folder(folder, series)
        if chosen is not None:
            self.candidates = _picked(self.candidates, chosen)
        _name(self.root, self.candidates, chosen or {})

    def _of_folder(self, folder: Path, series: list[DicomSeries]) -> list[CaseCandidate]:
        """Return the candidates of one folder: series, or single files."""
        # `singles` are series in which each file is a candidate of its own.
        images = [item for item in series if item.kind == "image"]
        singles = {id(item) for item in images if item.is_picture}
        if sum(len(item.files) for item in images if id(item) in singles) == 1 and len(series) == 1:
            singles = set()  # the mask of a picture alone in its folder may have the folder's name
        if len(images) > 1 and all(item.slices == 1 for item in images):
            singles = {id(item) for item in images}
        if not _existing(self._folder_places(folder), LABELS):
            # Masks are named after files: one is enough for a series of one file. In a series of
            # several files, one such name may be chance.
            singles |= {
                id(item)
                for item in images
                if len(self._stem_masks(folder, item.files)) > (len(item.files) > 1)
            }
        found = []
        for item in series:
            files = tuple(sorted(item.files))
            if id(item) in singles:
                found += [CaseCandidate(item, (path,), path) for path in files]
            else:
                found.append(CaseCandidate(item, files, folder))
        return found

    def _stem_masks(self, folder: Path, files: Iterable[Path]) -> list[Path]:
        """Return the masks in the folders for masks that have the names of files of a series."""
        endings = (*LABELS, *PICTURES)
        return [
            mask
            for path in files
            for stem in dict.fromkeys((_stem(path), path.name))
            for mask in _existing([self.root / part / stem for part in MASK_FOLDERS], endings)
        ]

    def _places(self, candidate: CaseCandidate, level: Path) -> list[Path]:
        """Return the paths, without ending, that a mask of a file or folder may have."""
        if level == candidate.image and candidate.is_file:
            names = (_stem(level), level.stem, level.name)
            stems = dict.fromkeys((candidate.name, *names))
            beside = [level.parent / stem for stem in dict.fromkeys(names)]
            below = self._mirrored(level.parent)
            beside += [folder / stem for folder in below for stem in dict.fromkeys(names)]
            return [*(self.root / part / stem for part in MASK_FOLDERS for stem in stems), *beside]
        return self._folder_places(level)

    def _mirrored(self, folder: Path) -> list[Path]:
        """Return the folders for masks that mirror a folder of images: masks/a/b for images/a/b."""
        parts = folder.relative_to(self.root).parts
        parts = parts[1:] if parts[:1] and parts[0] in _IMAGE_FOLDERS else parts
        return [self.root.joinpath(part, *parts) for part in MASK_FOLDERS] if parts else []

    def _folder_places(self, level: Path) -> list[Path]:
        """Return the paths, without ending, that a mask of a folder may have."""
        if level == self.root:
            return [self.root / part / self.root.resolve().name for part in MASK_FOLDERS]
        parts = level.relative_to(self.root).parts
        stems = ["_".join(parts)]
        if parts[0] in _IMAGE_FOLDERS and len(parts) > 1:
            stems.append("_".join(parts[1:]))
        places = [self.root / part / stem for part in MASK_FOLDERS for stem in stems]
        return [*places, *self._mirrored(level), level.parent / level.name]

    def _levels(self, candidate: CaseCandidate) -> list[Path]:
        """Return what a mask of the candidate may be named after: file, folder, and those above."""
        levels = [candidate.image] if candidate.is_file else []
        folder = candidate.series.folder
        while True:
            levels.append(folder)
            if folder == self.root or self.root not in folder.parents:
                return levels
            folder = folder.parent

    def _masks_by_pattern(self) -> None:
        """Give each candidate the mask of ``data.label`` that has its name."""
        masks = files_by_name(self.root, str(self.options.label))
        for candidate in self.candidates:
            candidate.masks = [masks[key] for key in (candidate.name, "") if key in masks][:1]
            self.used.update(candidate.masks)
        for path in sorted(set(masks.values()) - self.used):
            self._orphan(path, "it matches data.label, but no case has its name")

    def _masks_by_reference(self) -> None:
        """Give SEG and RTSTRUCT objects to the candidates of the series that they refer to."""
        for item in self.contents.masks:
            fitting, reason = belongs_to(item, [c.series for c in self.candidates])
            ids = {id(series) for series in fitting}
            owners = [candidate for candidate in self.candidates if id(candidate.series) in ids]
            if len(owners) == 1:
                owners[0].masks.append(item.path)
                self.used.add(item.path)
            elif not item.is_contours:
                self._orphan(item.path, reason or f"it fits {len(owners)} of the series")

    def _masks_by_name(self) -> None:
        """Give masks to the candidates that they are named after.

        The deepest folder is tried first. If several candidates below a folder have no mask of
        their own, a mask with the name of the folder makes them rivals.
        """
        members: dict[Path, list[CaseCandidate]] = {}
        for candidate in self.candidates:
            for level in self._levels(candidate):
                members.setdefault(level, []).append(candidate)
        names = Counter(candidate.name for candidate in self.candidates)
        for level in sorted(members, key=lambda path: (-len(path.parts), path)):
            inside = [c for c in members[level] if not _has_own(c)]
            for candidate in inside:
                if names[candidate.name] == 1:  # unlike a folder's name, it may end in a hash
                    places = [self.root / part / candidate.name for part in MASK_FOLDERS]
                    self._take(candidate, _existing(places, LABELS))
            inside = [c for c in inside if not _has_own(c)]
            is_file = len(inside) == 1 and inside[0].image == level and inside[0].is_file
            places = self._places(inside[0], level) if is_file else self._folder_places(level)
            found = _existing(places, (*LABELS, *PICTURES) if is_file else LABELS)
            found = [path for path in found if path not in self.used]
            inside = self._narrow(inside) if found else inside
            if found and len(inside) == 1:
                self._take(inside[0], found)
            elif found and inside:
                self.used.update(found)
                for candidate in inside:
                    candidate.rivals, candidate.place = inside, level

    def _narrow(self, inside: list[CaseCandidate]) -> list[CaseCandidate]:
        """Return the candidates that compete for one mask, without localizers.

        ``data.series`` may narrow them further.
        """
        inside = [c for c in inside if not _is_side_image(c, inside)] or inside
        left = {id(item) for item in choose_series([c.series for c in inside], self.terms)}
        return [c for c in inside if id(c.series) in left]

    def _take(self, candidate: CaseCandidate, masks: list[Path]) -> None:
        """Give a candidate the masks that are named after it."""
        contours = {item.path for item in self.contents.masks if item.is_contours}
        if masks:  # a mask with the name of the case wins over an RTSTRUCT
            candidate.masks = [path for path in candidate.masks if path not in contours]
        candidate.masks += [path for path in masks if path not in candidate.masks]
        self.used.update(masks)

    def _leave_out_side_images(self) -> None:
        """Drop localizers and the like beside volumes, and series beside one that has the mask."""
        every = self.candidates
        with_mask = {c.series.study for c in every if c.masks and c.series.study}
        kept = []
        for candidate in every:
            near = [c for c in every if c.series.folder == candidate.series.folder]
            if candidate.masks or candidate.rivals:
                kept.append(candidate)
            elif _is_side_image(candidate, near) or _is_flagged(candidate, every):
                self.left_out[_left_out_name(candidate)] += len(candidate.files)
            elif any(c.masks and not c.is_file for c in near) or (
                not candidate.is_file and candidate.series.study in with_mask
            ):
                self.left_out[f"{candidate.series.modality or 'image'} series without a mask"] += (
                    len(candidate.files)
                )
            else:
                kept.append(candidate)
        self.candidates = kept

    def _choose(self) -> None:
        """Apply ``data.series`` folder by folder, and mark the volumes that still compete."""
        if self.terms:
            self._apply_terms()
        for candidate in self.candidates:
            near = [
                c
                for c in self.candidates
                if c.series.folder == candidate.series.folder and not (c.masks or c.is_file)
            ]
            if len(near) > 1 and candidate in near and not candidate.rivals:
                candidate.rivals = near

    def _apply_terms(self) -> None:
        """Keep the candidates that ``data.series`` chooses.

        Raises:
            FindingError: it chooses none.
        """
        before = [candidate.series for candidate in self.candidates]
        kept = []
        for candidate in self.candidates:
            near = [c.series for c in self.candidates if c.series.folder == candidate.series.folder]
            near = (candidate.rivals and [c.series for c in candidate.rivals]) or near
            if candidate.is_file:
                near = [candidate.series]
            if any(item is candidate.series for item in choose_series(near, self.terms)):
                kept.append(candidate)
            else:
                self.left_out[
                    f"{candidate.series.modality or 'image'} not chosen by data.series"
                ] += len(candidate.files)
        if before and not kept:
            message = (
                f"no series fits data.series={','.join(self.terms)}; there are {listed(before)}"
            )
            raise fault("no_series", self.root, message, "choose one of those")
        for candidate in kept:
            candidate.rivals = [c for c in candidate.rivals if c in kept]
            if len(candidate.rivals) == 1:
                candidate.rivals = []
        self.candidates = kept

    def _make_cases(self) -> None:
        """Add a case for each candidate that is left, and the errors that concern it."""
        left = Counter(c.image for c in self.candidates)
        for candidate in self.candidates:
            if left[candidate.image] == 1:  # the only one of its folder needs no hash
                candidate.name = candidate.name.removesuffix(f"_{candidate.series.identity}")
        for candidate in self.candidates:
            if found := only_localizers(candidate.series):
                self.several[candidate.name] = found
            if candidate.rivals and candidate.name not in self.several:
                self.several |= dict.fromkeys((rival.name for rival in candidate.rivals), None)
                rivals = [rival.series for rival in candidate.rivals]
                self.several[candidate.name] = several_series(
                    candidate.place or candidate.series.folder, rivals
                )
            if len(candidate.masks) > 1:
                names = ", ".join(path.name for path in candidate.masks[:4])
                message = f"it has several masks: {names}"
                fix = "keep one, or choose with data.image and data.label"
                self.layout.findings.append(
                    error_finding("several_labels", candidate.image, message, fix)
                )
                self.layout.ambiguous.add(candidate.image)
            label = candidate.masks[0] if candidate.masks else None
            patient = candidate.series.patients[candidate.files[0]]
            self.layout.cases.append(
                Case(candidate.name, candidate.image, label, files=candidate.files, patient=patient)
            )

    def _report(self) -> None:
        """Report masks that belong to no case, and count the files that were left out."""
        owned = {path for candidate in self.candidates for path in candidate.masks}
        contours = [item.path for item in self.contents.masks if item.is_contours]
        unused = [path for path in contours if path not in self.used or path not in owned]
        lacking = any(not (c.masks or c.rivals) for c in self.candidates)
        for path in unused:
            if lacking and not self.options.label:
                self._orphan(path, "it refers to another series or frame of reference")
            else:
                self.left_out["RTSTRUCT"] += 1
        if not self.options.label:
            names = ", ".join(sorted({case.name for case in self.layout.cases})[:3])
            for path in sorted(set(_in_folders(self.root)) - self.used):
                self._orphan(path, f"no case has its name; cases are {names}, …" if names else "")
            strange = set(self.contents.pictures) - self.used - set(_in_folders(self.root))
            for path in sorted(strange):
                message = "it is not a DICOM file, and no image has its name; it is not read"
                found = warning_finding("other_file", path, message, "remove it, or rename it")
                self.layout.findings.append(found)
        warning = not_read_warning(self.root, self.left_out)
        self.layout.findings += [warning] if warning else []

    def _orphan(self, path: Path, reason: str) -> None:
        message = "this mask belongs to no DICOM series of the folder"
        message += f": {reason}" if reason else ""
        fix = "add the series, name the mask after its folder or file, or remove it"
        self.layout.findings.append(error_finding("missing_image", path, message, fix))


def several_series(folder: Path, series: Sequence[DicomSeries]) -> Finding:
    """Return the error that lists the volumes of a folder and says how to choose."""
    message = f"it holds {len(series)} volumes: {listed(series)}"
    fix = (
        f"choose with series={_telling(series)} (data.series= for a data set): a modality, a "
        "series number, largest, or the digits in brackets"
    )
    if len({patient for item in series for patient in item.patients.values() if patient}) > 1:
        fix += "; they are of several patients: better give each a folder with the name of its mask"
    return error_finding("several_series", folder, message, fix)


def _telling(series: Sequence[DicomSeries]) -> str:
    """Return a term that chooses the first series alone: its modality, number or identity."""
    first, others = series[0], series[1:]
    if first.modality and all(item.modality != first.modality for item in others):
        return first.modality
    if first.number is not None and all(item.number != first.number for item in others):
        return str(first.number)
    return first.identity


def only_localizers(series: DicomSeries) -> Finding | None:
    """Return an error if a series holds nothing but localizers, in several orientations."""
    if series.kind != "localizer" or len(series.turns) < 2:
        return None
    message = f"it holds {series.slices} localizers and no scan"
    return error_finding("only_localizers", series.folder, message, "add the scan, or leave it out")


def not_read_warning(root: Path, kinds: Mapping[str, int]) -> Finding | None:
    """Return a warning that counts the files that are not read, by kind; None if there are none."""
    if not kinds:
        return None
    parts = [f"{kind} ({count} file{'s' * (count > 1)})" for kind, count in sorted(kinds.items())]
    message = f"beside the images are other DICOM objects, which are not read: {', '.join(parts)}"
    return warning_finding("other_object", root, message, "do nothing if that is intended")


def volumes_of(
    folder: Path, contents: FolderContents, choice: str | None
) -> tuple[list[DicomSeries], Counter[str]]:
    """Return the series of a folder that may be meant as one volume.

    Returns:
        The series, and a count of the files that are left out, by kind.

    Raises:
        FindingError: no series fits the choice.
    """
    candidates = [CaseCandidate(item, tuple(item.files), folder) for item in contents.series]
    left_out = Counter(contents.others)
    left_out["RTSTRUCT"] += sum(item.is_contours for item in contents.masks)
    left_out["SEG"] += sum(not item.is_contours for item in contents.masks)
    kept = []
    for candidate in candidates:
        if _is_side_image(candidate, candidates) or _is_flagged(candidate, candidates):
            left_out[_left_out_name(candidate)] += len(candidate.files)
        else:
            kept.append(candidate.series)
    left = choose_series(kept, parse_choice(choice))
    for item in kept:
        if not any(item is other for other in left):
            left_out[f"{item.modality or 'image'} not chosen"] += len(item.files)
    if kept and not left:
        message = f"no series fits series={choice} (as given, or as the adapter was trained); "
        message += f"there are {listed(kept)}"
        raise fault("no_series", folder, message, "choose one of those")
    return left, +left_out


def _picked(candidates: list[CaseCandidate], chosen: Mapping[Path, str]) -> list[CaseCandidate]:
    """Return the candidates that a pattern of folders or files matches."""
    found = []
    for candidate in candidates:
        if candidate.series.folder in chosen or candidate.image in chosen:
            found.append(candidate)
            continue
        files = [path for path in candidate.files if path in chosen]
        found += [CaseCandidate(candidate.series, (path,), path) for path in files]
    return found


def _name(root: Path, candidates: list[CaseCandidate], chosen: Mapping[Path, str]) -> None:
    """Name the candidates: by the pattern, by file, or by folder.

    A hash follows the name of a folder that holds several volumes.
    """
    volumes = [c for c in candidates if not c.is_file and not _is_flagged(c, candidates)]
    for candidate in candidates:
        if candidate.image in chosen:
            candidate.name = chosen[candidate.image] or candidate.image.name
        else:
            parts = list(candidate.image.relative_to(root).parts)
            if candidate.is_file:
                parts[-1] = _stem(candidate.image)
                if len(parts) > 1 and parts[0] in _IMAGE_FOLDERS:
                    parts = parts[1:]
            candidate.name = "_".join(parts) or root.resolve().name
    files = Counter(c.name for c in candidates if c.is_file)
    for candidate in candidates:
        if candidate.is_file and files[candidate.name] > 1:  # they differ in their endings alone
            candidate.name += candidate.image.suffix.replace(".", "_")
        near = [c for c in volumes if c.image == candidate.image and not _is_side_image(c, volumes)]
        if not candidate.is_file and len(near) > 1:
            candidate.name += f"_{candidate.series.identity}"


def _stem(path: Path) -> str:
    """Return a file's name without its ending. The last number of a UID is not an ending."""
    ending = path.suffix[1:]
    return path.stem if ending.isalpha() and len(ending) <= 5 else path.name


def _has_own(candidate: CaseCandidate) -> bool:
    """Return whether it has a mask that is a label file, and not only a SEG or RTSTRUCT object."""
    return any(path.name.lower().endswith((*LABELS, *PICTURES)) for path in candidate.masks)


def _is_flagged(candidate: CaseCandidate, others: Sequence[CaseCandidate]) -> bool:
    """Return whether it is a localizer or a screenshot, and another candidate is an image."""
    return candidate.series.kind != "image" and any(c.series.kind == "image" for c in others)


def _is_side_image(candidate: CaseCandidate, others: Sequence[CaseCandidate]) -> bool:
    """Return whether it lies beside a volume and is a localizer, a screenshot or a single image.

    A series with images of several orientations counts as localizers.
    """
    if candidate.is_file:
        return False
    near = [c for c in others if c is not candidate and not c.is_file]
    volumes = [c for c in near if c.series.kind == "image" and len(c.series.turns) < 2]
    volumes = [c for c in volumes if c.series.slices > 1]
    if candidate.series.kind != "image":
        return bool(volumes)
    return bool(volumes) and (candidate.series.slices == 1 or len(candidate.series.turns) > 1)


def _left_out_name(candidate: CaseCandidate) -> str:
    """Return what a candidate that is left out is called in the warning."""
    series = candidate.series
    if series.kind == "image":
        kind = "images of several orientations" if len(series.turns) > 1 else "single images"
        return f"{series.modality or 'other'} {kind}"
    return f"{series.modality or 'other'} {series.kind}"


def _existing(places: Sequence[Path], endings: Sequence[str]) -> list[Path]:
    """Return the files that exist at the given paths with one of the endings, each once."""
    found = [
        place.with_name(f"{place.name}{part}{ending}")
        for place in places
        for part in _MASK_ENDS
        for ending in endings
    ]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def _in_folders(root: Path) -> list[Path]:
    """Return the masks in the folders for masks."""
    files = [path for part in MASK_FOLDERS for path in (root / part).glob("*")]
    return [path for path in files if path.name.lower().endswith((*LABELS, *PICTURES))]
