"""Problems that a user should know about and that stop nothing; see ``codes.py``."""

from __future__ import annotations

from samadapt.data.findings import Code


def _warning(meaning: str, fix: str) -> Code:
    return Code("warning", meaning, fix)


WARNINGS = {
    "anisotropic": _warning(
        "The voxels are more than five times as long along one axis as along another. Slices along "
        "the other axes look squeezed, and the distance between slices is large.",
        "Slice along the axis with the largest spacing. data.axis=auto does this.",
    ),
    "assumed_axial": _warning(
        "A DICOM picture does not say where it is in space. It is read as an axial slice.",
        "Nothing needs to be done if it is a single picture.",
    ),
    "class_absent": _warning(
        "A class of the class list occurs in no case, so it can be neither learned nor scored.",
        "Check the values in data.classes, or leave the class out.",
    ),
    "class_missing_in_split": _warning(
        "A class occurs in no training case, so it is not learned, or in no validation case, so it "
        "is not scored.",
        "Use more cases, or divide them differently with data.val_every or data.fold.",
    ),
    "constant_channel": _warning(
        "One channel of a case has the same value everywhere, so it gives the model no "
        "information.",
        "Export the channel again, or leave the case out.",
    ),
    "constant_mask": _warning(
        "Every voxel of the mask has a class, and no voxel is background.",
        "Check that this is the right file, and that the background has the value 0.",
    ),
    "contour_gaps": _warning(
        "A region of a DICOM RTSTRUCT object has no contour on some slices between its first and "
        "its last. Those slices are read as background; nothing is interpolated.",
        "If the gaps are not intended, interpolate the contours in the planning system.",
    ),
    "contours_between_slices": _warning(
        "Contours of a DICOM RTSTRUCT object are between the slices of the image. Each slice uses "
        "the nearest plane of contours.",
        "Check that the contours were drawn on this series.",
    ),
    "contours_cross": _warning(
        "Two contours of one region cross on the same slice. Contours are combined by exclusive "
        "or, so the area that both enclose becomes a hole.",
        "Look at the overlays. If the contours mean one area, join them.",
    ),
    "duplicate_image": _warning(
        "Two cases contain the same image, voxel by voxel, so it counts twice.",
        "Remove one of the two.",
    ),
    "few_cases": _warning(
        "There are fewer than five cases. Scores on so few cases say little about other patients.",
        "Add cases, or state the number of cases together with the scores.",
    ),
    "frames_as_slices": _warning(
        "The frames of a film (ultrasound, fluoroscopy) have no position in space. They are read "
        "as slices in their order, without a spacing.",
        "Nothing needs to be done. Scores of distances are in pixels instead of mm.",
    ),
    "gantry_tilt": _warning(
        "Each slice is shifted sideways against the one before, because the CT gantry was tilted.",
        "Nothing needs to be done: the affine matrix describes the shear. Resample the volume if "
        "another program needs right angles.",
    ),
    "hidden_object": _warning(
        "An object is completely covered by smaller ones, so no pixel of it is left.",
        "Remove the object if it is a duplicate.",
    ),
    "hu_offset": _warning(
        "A CT image has no negative values, although air should be -1000 HU. Its values probably "
        "have an offset of 1024, so CT windows would show the wrong tissue.",
        "Subtract 1024, or apply the rescale slope and intercept of the original files.",
    ),
    "hu_range": _warning(
        "A CT image has values below -1100 or above 4000 HU. The cause is padding outside the "
        "field of view, metal, or a wrong conversion to HU.",
        "Nothing needs to be done for padding or metal, because CT windows clip these values. "
        "Otherwise convert the values to HU.",
    ),
    "ignore_absent": _warning(
        "data.ignore names a value that occurs in no mask, so the key has no effect.",
        "Check the value in the masks, or leave data.ignore out.",
    ),
    "mask_by_index": _warning(
        "A picture has no position in the patient, and the affine matrix of its mask points "
        "against its rows or columns. The mask is read by column and row as it is stored.",
        "Look at the overlays, or save the mask as PNG.",
    ),
    "missing_region": _warning(
        "Some regions exist only in some of the DICOM RTSTRUCT objects of the data set. Where a "
        "region is missing it counts as absent, although it may only be undrawn.",
        "Choose regions that every case has with data.classes, or leave those cases out.",
    ),
    "mixed_colour": _warning(
        "Some images are grey and others have colours. To the model these are different domains.",
        "Convert all images to one kind, or train one adapter for each kind.",
    ),
    "no_foreground": _warning(
        "The mask is empty: all its values are 0.",
        "Check that this is the right file.",
    ),
    "no_label_file": _warning(
        "A picture of a YOLO data set has no label file. In this format that means that the "
        "picture shows no object.",
        "Add the label file if the picture shows an object.",
    ),
    "no_orientation": _warning(
        "A NIfTI header does not state the orientation of the patient (sform_code and qform_code "
        "are 0), so left and right are a guess.",
        "Convert the volume again from its source.",
    ),
    "no_patient": _warning(
        "The pattern of data.patient does not match the names of some cases. Each of these cases "
        "counts as a patient of its own.",
        "Correct the pattern.",
    ),
    "not_an_area": _warning(
        "A labelme file contains lines or points. They have no area, so they are not read.",
        "If they stand for objects, draw them as polygons.",
    ),
    "not_annotated": _warning(
        "The file of data.annotated does not list these cases, so they have no loss and no score.",
        "List them, or add a row with the case * for all cases that are not listed.",
    ),
    "oblique": _warning(
        "The image grid is turned by more than 10 degrees against the axes of the body. Slices are "
        "cut along the grid, so an axial slice of this case shows another plane than in other "
        "cases.",
        "Nothing needs to be done if all cases are like this. Otherwise resample the case to "
        "straight axes.",
    ),
    "orientation_differs": _warning(
        "The axes of this file have another order or direction than those of most files. They are "
        "rearranged when the file is read. But a conversion that lost the orientation looks the "
        "same.",
        "Open the case in a viewer and check: is left on the same side as in the other cases?",
    ),
    "other_file": _warning(
        "The folder contains a file that is not read.",
        "Remove or convert it.",
    ),
    "other_object": _warning(
        "Other DICOM objects are stored beside the images (localizers, screenshots, doses, plans, "
        "reports, or series that were not chosen). They are counted by kind and not read.",
        "Nothing needs to be done if this is intended. Otherwise choose with data.series or "
        "data.image.",
    ),
    "rare_class": _warning(
        "A class occurs in a single case, so it can be either learned or scored, but not both.",
        "Add cases with this class, merge it into another class, or leave it out.",
    ),
    "same_mask": _warning(
        "Two cases with different images have the same mask, voxel by voxel.",
        "Check that each mask belongs to its image.",
    ),
    "saturated": _warning(
        "More than five percent of the voxels have the highest value of the image. Differences "
        "above that value were cut off.",
        "Export the image again without clipping.",
    ),
    "size_outlier": _warning(
        "One side of the image has more than three times the usual number of voxels, or less than "
        "a third of it.",
        "Check that the case belongs to the data set.",
    ),
    "spacing_outlier": _warning(
        "The voxel spacing is more than twice the usual one, or less than half of it.",
        "Check the header. If it is true, resample the case.",
    ),
    "split_folders": _warning(
        "Subfolders are named after parts of a division (train, val, test), but all of them are "
        "read as one data set.",
        "Leave only the training pictures in images/, and score the others with evaluate.",
    ),
    "tiny_objects": _warning(
        "A mask contains separate objects of fewer than 8 voxels. They are usually specks of a "
        "brush or results of interpolation, and each would get a prompt of its own.",
        "Clean the mask, or give such objects no prompt with prompts.min_area.",
    ),
    "two_grids": _warning(
        "The sform and the qform of a NIfTI header place voxels more than one voxel apart. The "
        "sform is used.",
        "Find out which one is right, and write it to both.",
    ),
    "unnamed_colours": _warning(
        "A mask contains colours that data.classes does not name. They count as background.",
        "Name them in data.classes or in data.background.",
    ),
}
