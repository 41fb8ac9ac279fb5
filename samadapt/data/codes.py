"""Every kind of problem that a data set can have: one entry a code, and the page made of them.

``samadapt check explain=CODE`` shows one, ``explain=all`` the page ``datasets/CHECKS.md``. A
finding itself names the file and what was found there; here stands what its code means in general.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from samadapt.data.types import Severity
from samadapt.errors import ConfigError, nearest


@dataclass(frozen=True)
class Code:
    """One kind of problem.

    Attributes:
        severity: an ``"error"`` makes a case, or the data set, unusable.
        meaning: what is wrong, in one sentence, and why it matters.
        fix: what to do.
    """

    severity: Severity
    meaning: str
    fix: str


def _error(meaning: str, fix: str) -> Code:
    return Code("error", meaning, fix)


def _warning(meaning: str, fix: str) -> Code:
    return Code("warning", meaning, fix)


CODES = {
    "alpha_mask": _error(
        "A mask seems to be drawn in the alpha channel (transparency), which is not read.",
        "Save the alpha channel as a grey PNG; or remove it, if the other channels hold the mask.",
    ),
    "anisotropic": _warning(
        "Voxels are more than five times as long along one axis as along another, so slices along "
        "other axes look squeezed, and distances between slices are coarse.",
        "Slice along the axis with the largest spacing: data.axis=auto does.",
    ),
    "annotation_class": _error(
        "An annotation names a class that is not in the class list.",
        "Mend the name in the JSON file, or list it with data.classes={name: value}.",
    ),
    "annotation_schema": _error(
        "An annotation file is not JSON, or not as the schema of boxes, points and labels says.",
        "Compare it with the schema in samadapt/data/annotations.py.",
    ),
    "assumed_axial": _warning(
        "A DICOM picture does not say where it lies; it is taken as an axial slice.",
        "Nothing, if it is one picture.",
    ),
    "bad_annotations": _error(
        "The annotation file (COCO, SA-1B) is not as its format defines.",
        "Export it again; the message names the entry.",
    ),
    "bad_contours": _error(
        "A contour of an RTSTRUCT object lies in no slice of the image, or is no list of points.",
        "Export the structure set for the series that it was drawn on.",
    ),
    "bad_dataset_json": _error(
        "dataset.json lacks labels, or an entry of it is not as MSD or nnU-Net define it.",
        "Mend dataset.json.",
    ),
    "bad_geometry": _error(
        "A DICOM header gives an orientation or a spacing that cannot be.",
        "Export the series again.",
    ),
    "bad_header": _error("The header of the volume cannot be used.", "Export it again."),
    "bad_pattern": _error(
        "A pattern of data.image or data.label cannot be used: it has **, or its * do not tell the "
        "cases apart.",
        "Write a * for each folder and name part; the last * names the case.",
    ),
    "bad_segmentation": _error(
        "A polygon, a run-length code or a segment of a mask cannot be decoded.",
        "Export the annotation again.",
    ),
    "bad_shape": _error(
        "The image has too few or too many axes, or an axis without voxels.",
        "Check how it was made; split a series of volumes into files.",
    ),
    "bad_spacing": _error(
        "The voxel spacing is zero, negative or not a number, or the affine cannot be inverted.",
        "Set the true spacing and orientation in the header.",
    ),
    "bad_split": _error(
        "The card's or the caller's division into training and validation cannot be made: a name "
        "is unknown, or a case or a patient is on both sides.",
        "Mend the split; keep all cases of a patient on one side.",
    ),
    "blended_colours": _error(
        "A colour mask has smoothed edges: many colours that no class names, most of them rare.",
        "Export it with nearest neighbour, or set data.background=rest.",
    ),
    "box_outside": _error(
        "A box of an annotation lies outside the image.",
        "Give XYXY pixels of the original image.",
    ),
    "broken_dataset_json": _error("dataset.json is not a JSON object.", "Mend it."),
    "broken_json": _error("A JSON file cannot be parsed.", "Copy or export it again."),
    "category_conflict": _error(
        "Two annotation files give one category number different names.", "Number them alike."
    ),
    "channel_choice": _error(
        "The images have several channels, and none, or one that is not there, is chosen.",
        "Choose one, or up to three, by name or number with data.channel.",
    ),
    "class_absent": _warning(
        "A class of the list occurs in no case: nothing can be learned or scored for it.",
        "Check the values in data.classes, or leave the class out.",
    ),
    "class_missing_in_split": _warning(
        "A class occurs in no training case, so that it is not learned, or in no validation case, "
        "so that it is not scored.",
        "Use more cases, or another division: data.val_every, data.fold.",
    ),
    "colour_dicom": _error(
        "A DICOM image has colours, where one grey value a pixel is expected.",
        "Export it as pictures and use data=folder.",
    ),
    "colour_mask": _error(
        "A mask is a colour image, and no class is named by its colour.",
        'Name the classes by colour, as data.classes={liver: "#ff0000"}, or save class numbers.',
    ),
    "colour_range": _error(
        "Colours are neither 8-bit values nor fractions of 0..1.",
        "Scale them and save the file again.",
    ),
    "colour_volume": _error(
        "An array holds a stack of colour pictures, where a volume has one value a voxel.",
        "Save each picture as a file of its own.",
    ),
    "compressed_dicom": _error(
        "The pixels are compressed in a way that needs another package.",
        "Decompress the series, or install pylibjpeg's plugins.",
    ),
    "constant_channel": _warning(
        "A channel of a case has one value everywhere: the model sees nothing there.",
        "Export it again, or leave the case out.",
    ),
    "constant_image": _error(
        "All voxels of the image have one value: there is nothing to see.",
        "Export it again.",
    ),
    "constant_mask": _warning(
        "The mask has the same class everywhere, background nowhere.",
        "Check that it is the right file and that 0 is background.",
    ),
    "contour_gaps": _warning(
        "Regions of an RTSTRUCT object have no contour on some slices between their first and "
        "last; those slices count as background, nothing is interpolated.",
        "Interpolate them in the planning system, unless they are gaps.",
    ),
    "contours_between_slices": _warning(
        "Contours of an RTSTRUCT object lie between the slices of the image; each slice takes the "
        "nearest plane of contours.",
        "Check that they were drawn on this series.",
    ),
    "contours_cross": _warning(
        "Contours of one region cross on a slice; by exclusive or, what two of them share is left "
        "out, as if it were a hole.",
        "Look at the overlays; join the contours where they mean one area.",
    ),
    "dangling_annotation": _error(
        "An annotation points to an image or a category that is not listed.",
        "Export the annotation file again.",
    ),
    "duplicate_case": _error(
        "Two files belong to one case name.", "Keep one of the two, or rename it."
    ),
    "duplicate_image": _warning(
        "Two cases hold the same image, voxel by voxel; it counts twice.",
        "Remove one of the two.",
    ),
    "duplicate_leak": _error(
        "The same image is in training and in validation, so that scores are of images that the "
        "model was trained on. finetune and evaluate refuse it too.",
        "Remove one of the two, or leave later copies out with data.on_error=skip.",
    ),
    "duplicate_position": _error(
        "Two slices of a DICOM series lie at one place.", "Keep each slice once."
    ),
    "empty_file": _error("The file has 0 bytes.", "Copy or download it again."),
    "few_cases": _warning(
        "There are fewer than five cases: scores say little about further patients.",
        "Add cases, or report the scores as what they are.",
    ),
    "exif_orientation": _error(
        "EXIF turns the picture, and its mask or annotation has the size of the stored pixels, or "
        "its size does not tell on which of the two it is drawn.",
        "Set data.exif=apply if masks are drawn on the picture as viewers show it, "
        "data.exif=ignore if on the stored pixels; or save the pictures upright.",
    ),
    "file_ending": _error(
        "dataset.json declares images of a format that this reader does not read.",
        "Convert the images, or choose another reader with data=NAME.",
    ),
    "fractional_segments": _error(
        "A DICOM segmentation is FRACTIONAL: it holds shares, not a label a voxel.",
        "Export it as a BINARY segmentation.",
    ),
    "frames_as_slices": _warning(
        "The frames of a film (ultrasound, fluoroscopy) have no position; they are read as slices "
        "in their order, without a spacing.",
        "Nothing; scores of distances are in pixels.",
    ),
    "gantry_tilt": _warning(
        "The slices are shifted along the stack: the gantry was tilted.",
        "Nothing: the affine is sheared; resample where a program needs right angles.",
    ),
    "grey_levels": _error(
        "A mask holds the grey levels of an anti-aliased or interpolated edge, such as paint "
        "programs and resizing write. They are no classes.",
        "Make two values of them with data.mask_threshold, or export the mask without smoothing.",
    ),
    "grid_mismatch": _error(
        "Image and mask have the same shape, but their affines put them at different places.",
        "Resample the mask to the image's grid, or copy the affine if it is the true one.",
    ),
    "hidden_object": _warning(
        "An object lies wholly under smaller ones and has no pixel of its own.",
        "Remove it if it is a double.",
    ),
    "hu_offset": _warning(
        "A CT has no negative values, though air is -1000 HU: most likely its values are "
        "unsigned, with 1024 added, and windows in HU show the wrong tissue.",
        "Subtract 1024, or apply the rescale slope and intercept of the source.",
    ),
    "hu_range": _warning(
        "A CT holds values below -1100 or above 4000 HU: padding outside the field of view, metal, "
        "or a wrong rescaling.",
        "Nothing, where it is padding or metal: windows cut it off; else rescale to HU.",
    ),
    "ignore_absent": _warning(
        "data.ignore names a value that occurs in no mask, so that it changes nothing.",
        "Check the value in the masks, or leave data.ignore out.",
    ),
    "label_value": _error(
        "A mask holds values outside the class list.",
        "Mend the mask, or list the classes to use with data.classes={name: value}.",
    ),
    "lossy_mask": _error(
        "A mask is a JPEG, whose compression alters values at edges.", "Export it again as PNG."
    ),
    "mask_by_index": _warning(
        "A picture lies nowhere in the patient, and the affine of its mask runs against its rows "
        "or columns; the mask's voxels are taken by column and row as stored.",
        "Look at the overlays, or save the mask as PNG.",
    ),
    "mask_channels": _error(
        "A mask has several numbers a voxel, as one-hot labels have, where one class number is "
        "expected.",
        "Save one number a voxel, for example numpy.argmax(mask, axis=-1).",
    ),
    "missing_dataset_json": _error(
        "An MSD or nnU-Net folder has no dataset.json.",
        "Add it, or name the files with data.image, data.label and data.classes.",
    ),
    "missing_file": _error("A file that is named is not there.", "Check the path."),
    "missing_folder": _error(
        "The data set's folder, or the folder of its images, is not there.",
        "Set data.root to the data set's folder.",
    ),
    "missing_geometry": _error(
        "A DICOM series does not say where its slices lie.", "Export the original series."
    ),
    "missing_image": _error(
        "A mask or an annotation has no image.", "Add the image, or remove the file."
    ),
    "missing_key": _error("An .npz file lacks an array that is expected.", "Export it again."),
    "missing_label": _error("An image has no mask.", "Add the mask, or move the image away."),
    "missing_package": _error(
        "Reading this format needs a package that is not installed.",
        "Install the extra that the message names.",
    ),
    "missing_region": _warning(
        "Regions that only some RTSTRUCT objects of the data set have; where a region is missing "
        "it counts as absent, whether nobody drew it or there is none.",
        "Choose regions that every case has with data.classes, or leave those cases out.",
    ),
    "missing_slices": _error(
        "Slices are missing between others of the series.", "Export the whole series again."
    ),
    "mixed_colour": _warning(
        "Some images are grey and some have colours, which the model sees as different domains.",
        "Convert them to one kind, or train an adapter for each.",
    ),
    "mixed_encodings": _error(
        "Some masks mark the foreground by 1 and others by 255: two encodings of one class, or "
        "255 for pixels without a class.",
        "Give data.classes={foreground: [1, 255]}, or data.ignore=255 where it is not annotated.",
    ),
    "mixed_labels": _error(
        "Labels of a series are given in two kinds of files.", "Keep one kind of label."
    ),
    "mixed_orientations": _error(
        "Slices of one series lie in different directions.", "Separate them into series."
    ),
    "mixed_sizes": _error(
        "Slices of one series have different sizes.", "Keep slices of one size in a series."
    ),
    "no_cases": _error("The folder holds no image that this reader reads.", "Check data.root."),
    "no_foreground": _warning(
        "The mask is empty: no voxel differs from 0.", "Check that it is the right file."
    ),
    "no_objects": _error(
        "No mask holds a pixel of a class: there is nothing to learn and nothing to score.",
        "Check that the masks are the right files, and the values in data.classes.",
    ),
    "no_orientation": _warning(
        "A NIfTI header says neither by sform nor by qform how the patient lies (both codes are "
        "0), so left and right are a guess.",
        "Convert it from its source again.",
    ),
    "no_patient": _warning(
        "data.patient does not match the names of some cases; each of them counts as a patient.",
        "Mend the pattern.",
    ),
    "no_series": _error(
        "No DICOM series fits data.series.", "Choose one of those that the message lists."
    ),
    "non_finite_voxels": _error(
        "Some voxels are NaN or infinite.", "Replace them by the background's value."
    ),
    "non_integer_labels": _error(
        "A mask holds fractions: it was interpolated.",
        "Export it again with nearest neighbour.",
    ),
    "not_dicom": _error("A file that is named as DICOM is none.", "Remove it, or copy it again."),
    "not_nifti": _error(
        "The content is not a single-file NIfTI, whatever the name says.",
        "Do what the message says of the content, or convert it to .nii.gz again.",
    ),
    "object_numbers": _error(
        "The masks number objects (1 to n in each mask, nearly each one connected region), and no "
        "classes are declared. Every number would become a class.",
        "Give data.instances=true: each number is one object of one class; or data.classes.",
    ),
    "not_read": _error(
        "The file is of a kind that is not read here: Analyze 7.5, a NIfTI pair, FreeSurfer, MINC.",
        "Convert it to .nii.gz; the message has the command.",
    ),
    "oblique": _warning(
        "The grid is turned against the body's axes by more than 10 degrees; slices are cut along "
        "the grid, so an axial slice of this case is not that of others.",
        "Nothing, where all cases are so; else resample the case to straight axes.",
    ),
    "orientation_differs": _warning(
        "The axes of this file run otherwise than those of most files. They are rearranged when "
        "read; but a conversion that lost the orientation looks like this.",
        "Look at the case in a viewer: is left on the same side as in the others?",
    ),
    "other_file": _warning("A file in the folder is not read.", "Remove or convert it."),
    "other_frame": _error(
        "A region of an RTSTRUCT object is drawn in another frame of reference than the image's, "
        "so its place in the image is unknown.",
        "Register it to the image, or remove that region.",
    ),
    "other_object": _warning(
        "Beside the images lie other DICOM objects (localizers, screenshots, doses, plans, "
        "reports, series that were not chosen); they are counted by kind and not read.",
        "Nothing, if that is meant; else choose with data.series or data.image.",
    ),
    "outside_image": _error(
        "Contours of an RTSTRUCT object lie outside the image.",
        "Export the structure set for this series.",
    ),
    "overlapping_labels": _warning(
        "dataset.json declares regions that share values; a voxel has one class here.",
        "Choose classes that do not overlap with data.classes={name: [values]}.",
    ),
    "overlapping_segments": _error(
        "Segments of a DICOM segmentation overlap; a voxel has one class here.",
        "Export segments that do not overlap.",
    ),
    "palette_background": _error(
        "Index 0 of palette masks is taken as background, but it is not black, or black is another "
        "index: object and background may be exchanged.",
        'Name the background\'s colour, as data.background="#000000".',
    ),
    "palette_conflict": _error(
        "The palettes of the masks differ, so that one index means different classes.",
        'Name the classes by colour, as data.classes={liver: "#ff0000"}.',
    ),
    "palette_double": _error(
        "Two palette indices that occur in a mask have the same colour.",
        "Save class numbers as a grey PNG, or name the classes by colour in data.classes.",
    ),
    "path_outside": _error(
        "A file that another file names lies outside of the data set's folder.",
        "Keep all files of the data set in its folder, and name them relative to it.",
    ),
    "pickled_array": _error(
        "An array is pickled, which could run code when read.", "Save plain arrays."
    ),
    "point_outside": _error(
        "A point of an annotation lies outside the image.", "Give pixels of the original image."
    ),
    "rare_class": _warning(
        "A class occurs in a single case: it is either learned or scored, not both.",
        "Add cases with it, merge it into another class, or leave it out.",
    ),
    "same_mask": _warning(
        "Two cases with different images have the same mask, voxel by voxel.",
        "Check that each mask belongs to its image.",
    ),
    "saturated": _warning(
        "More than five percent of the voxels have the image's highest value: what differed there "
        "was cut off.",
        "Export it again without clipping.",
    ),
    "several_acquisitions": _error(
        "Slices of a DICOM series lie at one place, since the folder holds several acquisitions, "
        "echoes or times.",
        "Put each acquisition into a folder of its own.",
    ),
    "several_colours": _error(
        "The masks have several colours beside the background's, and nothing says which is which.",
        'Name the classes by colour, as data.classes={liver: "#ff0000"}.',
    ),
    "several_pages": _error(
        "A picture file has several pages, or is an animation.", "Save each page as a file."
    ),
    "several_labels": _error(
        "A series has several masks, and nothing says which one is meant.",
        "Keep one, or choose it with data.image and data.label.",
    ),
    "several_series": _error(
        "A folder holds several DICOM volumes where one is expected.",
        "Choose with data.series (series= for predict), or give the folder of one series.",
    ),
    "shape_mismatch": _error(
        "Image and mask have different shapes.", "Export both on the same grid."
    ),
    "size_outlier": _warning(
        "A side of the image has more than three times, or less than a third of, the usual number "
        "of voxels.",
        "Check that the case belongs to the data set.",
    ),
    "spacing_conflict": _error(
        "A NIfTI header states two voxel sizes: the lengths of its affine (sform) and pixdim "
        "differ by more than 1 %. Programs disagree on which one they use (nibabel: the affine; "
        "ITK: pixdim), so every score in mm could be wrong.",
        "Find out which one is true: data.spacing=affine or data.spacing=pixdim, or correct the "
        "header.",
    ),
    "spacing_outlier": _warning(
        "The voxel spacing is more than twice, or less than half, the usual one.",
        "Check the header; resample the case if it is true.",
    ),
    "split_folders": _warning(
        "Subfolders are named as parts of a division (train, val, test), but all of them are one "
        "data set.",
        "Leave the training pictures alone in images/, and score the others with evaluate.",
    ),
    "time_limit": _error(
        "Reading the file took longer than the time limit.",
        "Check that it opens in another program; if it is right, raise data.max_seconds.",
    ),
    "tiny_objects": _warning(
        "A mask holds separate objects of fewer than 8 voxels: specks of a brush, or "
        "interpolation. Each would be prompted on its own.",
        "Clean the mask, or leave them unprompted with prompts.min_area.",
    ),
    "too_large": _error(
        "The file declares more than can be read at once, or unpacks to more than it declares.",
        "Check its header; if it is right, raise data.max_gb, or cut the file into parts.",
    ),
    "truncated_file": _error(
        "The file ends before its data do, or its compression is damaged.",
        "Copy or download it again.",
    ),
    "two_grids": _warning(
        "A NIfTI header's sform and qform place voxels more than a voxel apart; the sform is used.",
        "Write the right one of the two to both.",
    ),
    "uneven_spacing": _error(
        "The slices are not evenly spaced, or not in a straight stack.",
        "Resample the series to even slices.",
    ),
    "unnamed_colours": _warning(
        "A mask has colours that data.classes does not name; they count as background.",
        "Name them in data.classes or data.background.",
    ),
    "unreadable_image": _error(
        "The file cannot be read; the message says what the library said.",
        "Check that it opens in another program, or remove it.",
    ),
    "unsupported_dtype": _error(
        "The voxels are complex numbers, colours or another type than one real number each.",
        "Save them as int16 or float32.",
    ),
    "void_value": _error(
        "The masks hold 255 beside small class numbers, and no classes are declared. PASCAL VOC, "
        "Cityscapes and others mark pixels without a class so.",
        "Give data.ignore=255, or list the classes with data.classes={name: value}.",
    ),
}
"""All codes; a test keeps them in step with the code that finds the problems."""


def explain(code: str) -> str:
    """Return the section of a code, in Markdown.

    Raises:
        ConfigError: there is no such code.
    """
    if code not in CODES:
        raise ConfigError(
            f"explain: there is no code {code!r}{nearest(code, CODES)}; explain=all lists them"
        )
    entry = CODES[code]
    return f"## {code}\n\n*{entry.severity}.* {entry.meaning}\n\n{entry.fix}\n"


def page(codes: Iterable[str] = CODES) -> str:
    """Return ``datasets/CHECKS.md``: one section a code."""
    head = (
        "# What `samadapt check` finds\n\n"
        "One section a code. An error makes a case unusable: `finetune` and `evaluate` stop, or "
        "leave the case\nout with `data.on_error=skip`. A warning does not. Files are never "
        "changed. This page is made by\n`samadapt check explain=all`.\n"
    )
    return "\n".join([head, *(explain(code) for code in sorted(codes))])
