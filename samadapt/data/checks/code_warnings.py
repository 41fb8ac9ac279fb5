"""Kinds of problems that a user should know and that stop nothing; see ``codes.py``."""

from __future__ import annotations

from samadapt.data.findings import Code


def _warning(meaning: str, fix: str) -> Code:
    return Code("warning", meaning, fix)


WARNINGS = {
    "anisotropic": _warning(
        "Voxels are more than five times as long along one axis as along another, so slices along "
        "other axes look squeezed, and distances between slices are coarse.",
        "Slice along the axis with the largest spacing: data.axis=auto does.",
    ),
    "assumed_axial": _warning(
        "A DICOM picture does not say where it lies; it is taken as an axial slice.",
        "Nothing, if it is one picture.",
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
    "constant_channel": _warning(
        "A channel of a case has one value everywhere: the model sees nothing there.",
        "Export it again, or leave the case out.",
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
    "duplicate_image": _warning(
        "Two cases hold the same image, voxel by voxel; it counts twice.",
        "Remove one of the two.",
    ),
    "few_cases": _warning(
        "There are fewer than five cases: scores say little about further patients.",
        "Add cases, or report the scores as what they are.",
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
    "mask_by_index": _warning(
        "A picture lies nowhere in the patient, and the affine of its mask runs against its rows "
        "or columns; the mask's voxels are taken by column and row as stored.",
        "Look at the overlays, or save the mask as PNG.",
    ),
    "missing_region": _warning(
        "Regions that only some RTSTRUCT objects of the data set have; where a region is missing "
        "it counts as absent, whether nobody drew it or there is none.",
        "Choose regions that every case has with data.classes, or leave those cases out.",
    ),
    "mixed_colour": _warning(
        "Some images are grey and some have colours, which the model sees as different domains.",
        "Convert them to one kind, or train an adapter for each.",
    ),
    "no_foreground": _warning(
        "The mask is empty: no voxel differs from 0.",
        "Check that it is the right file.",
    ),
    "no_label_file": _warning(
        "A picture of a YOLO data set has no label file. By the format it shows no object.",
        "Add the file if it shows one.",
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
    "not_an_area": _warning(
        "An annotation of labelme holds lines or points, which have no area and are not read.",
        "Draw them as polygons where they stand for objects.",
    ),
    "not_annotated": _warning(
        "The file of data.annotated does not list these cases, so that they have no loss and no "
        "score.",
        "List them, or let a row with the case * stand for all cases that are not listed.",
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
    "other_object": _warning(
        "Beside the images lie other DICOM objects (localizers, screenshots, doses, plans, "
        "reports, series that were not chosen); they are counted by kind and not read.",
        "Nothing, if that is meant; else choose with data.series or data.image.",
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
    "size_outlier": _warning(
        "A side of the image has more than three times, or less than a third of, the usual number "
        "of voxels.",
        "Check that the case belongs to the data set.",
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
    "tiny_objects": _warning(
        "A mask holds separate objects of fewer than 8 voxels: specks of a brush, or "
        "interpolation. Each would be prompted on its own.",
        "Clean the mask, or leave them unprompted with prompts.min_area.",
    ),
    "two_grids": _warning(
        "A NIfTI header's sform and qform place voxels more than a voxel apart; the sform is used.",
        "Write the right one of the two to both.",
    ),
    "unnamed_colours": _warning(
        "A mask has colours that data.classes does not name; they count as background.",
        "Name them in data.classes or data.background.",
    ),
}
