"""Kinds of problems that make a case, or the data set, unusable; see ``codes.py``."""

from __future__ import annotations

from samadapt.data.findings import Code


def _error(meaning: str, fix: str) -> Code:
    return Code("error", meaning, fix)


ERRORS = {
    "alpha_mask": _error(
        "A mask seems to be drawn in the alpha channel (transparency), which is not read.",
        "Save the alpha channel as a grey PNG; or remove it, if the other channels hold the mask.",
    ),
    "annotation_class": _error(
        "An annotation names a class that is not in the class list.",
        "Mend the name in the JSON file, or list it with data.classes={name: value}.",
    ),
    "annotation_schema": _error(
        "An annotation file is not JSON, or not as the schema of boxes, points and labels says.",
        "Compare it with the schema in samadapt/data/annotations.py.",
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
        "Two annotation files give one category number different names.",
        "Number them alike.",
    ),
    "channel_choice": _error(
        "The images have several channels, and none, or one that is not there, is chosen.",
        "Choose one, or up to three, by name or number with data.channel.",
    ),
    "colour_dicom": _error(
        "A DICOM image has colours, and is neither one picture of 8 bits nor grey stored as RGB.",
        "Leave it out, or save its frames as pictures and use data=folder.",
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
    "constant_image": _error(
        "All voxels of the image have one value: there is nothing to see.",
        "Export it again.",
    ),
    "dangling_annotation": _error(
        "An annotation points to an image or a category that is not listed.",
        "Export the annotation file again.",
    ),
    "duplicate_case": _error(
        "Two files belong to one case name.", "Keep one of the two, or rename it."
    ),
    "duplicate_leak": _error(
        "The same image is in training and in validation, so that scores are of images that the "
        "model was trained on. finetune and evaluate refuse it too.",
        "Remove one of the two, or leave later copies out with data.on_error=skip.",
    ),
    "duplicate_position": _error(
        "Two slices of a DICOM series lie at one place.",
        "Keep each slice once.",
    ),
    "empty_file": _error("The file has 0 bytes.", "Copy or download it again."),
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
    "grey_levels": _error(
        "A mask holds the grey levels of an anti-aliased or interpolated edge, such as paint "
        "programs and resizing write. They are no classes.",
        "Make two values of them with data.mask_threshold, or export the mask without smoothing.",
    ),
    "grid_mismatch": _error(
        "Image and mask have the same shape, but their affines put them at different places.",
        "Resample the mask to the image's grid, or copy the affine if it is the true one.",
    ),
    "label_value": _error(
        "A mask holds values outside the class list.",
        "Mend the mask, or list the classes to use with data.classes={name: value}.",
    ),
    "lossy_mask": _error(
        "A mask is a JPEG, whose compression alters values at edges.",
        "Export it again as PNG.",
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
        "A DICOM series does not say where its slices lie.",
        "Export the original series.",
    ),
    "missing_image": _error(
        "A mask or an annotation has no image.",
        "Add the image, or remove the file.",
    ),
    "missing_key": _error("An .npz file lacks an array that is expected.", "Export it again."),
    "missing_label": _error("An image has no mask.", "Add the mask, or move the image away."),
    "missing_package": _error(
        "Reading this format needs a package that is not installed.",
        "Install the extra that the message names.",
    ),
    "missing_slices": _error(
        "Slices are missing between others of the series.",
        "Export the whole series again.",
    ),
    "mixed_encodings": _error(
        "Some masks mark the foreground by 1 and others by 255: two encodings of one class, or "
        "255 for pixels without a class.",
        "Give data.classes={foreground: [1, 255]}, or data.ignore=255 where it is not annotated.",
    ),
    "mixed_labels": _error(
        "Labels of a series are given in two kinds of files.",
        "Keep one kind of label.",
    ),
    "mixed_orientations": _error(
        "Slices of one series lie in different directions.",
        "Separate them into series.",
    ),
    "mixed_sizes": _error(
        "Slices of one series have different sizes.",
        "Keep slices of one size in a series.",
    ),
    "no_cases": _error("The folder holds no image that this reader reads.", "Check data.root."),
    "no_objects": _error(
        "No mask holds a pixel of a class: there is nothing to learn and nothing to score.",
        "Check that the masks are the right files, and the values in data.classes.",
    ),
    "no_series": _error(
        "No DICOM series fits data.series.",
        "Choose one of those that the message lists.",
    ),
    "non_finite_voxels": _error(
        "Some voxels are NaN or infinite.",
        "Replace them by the background's value.",
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
    "not_read": _error(
        "The file is of a kind that is not read here: Analyze 7.5, a NIfTI pair, FreeSurfer, MINC.",
        "Convert it to .nii.gz; the message has the command.",
    ),
    "object_numbers": _error(
        "The masks number objects (1 to n in each mask, nearly each one connected region), and no "
        "classes are declared. Every number would become a class.",
        "Give data.instances=true: each number is one object of one class; or data.classes.",
    ),
    "only_localizers": _error(
        "A DICOM series holds localizers (scouts) in several orientations, and no scan.",
        "Add the scan, or leave the folder out.",
    ),
    "other_frame": _error(
        "A region of an RTSTRUCT object is drawn in another frame of reference than the image's, "
        "so its place in the image is unknown.",
        "Register it to the image, or remove that region.",
    ),
    "outside_image": _error(
        "Contours of an RTSTRUCT object lie outside the image.",
        "Export the structure set for this series.",
    ),
    "overlapping_segments": _error(
        "Segments of a DICOM or Slicer segmentation overlap; a voxel has one class here.",
        "Export segments that do not overlap, or choose such with data.classes=[NAME].",
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
        "A point of an annotation lies outside the image.",
        "Give pixels of the original image.",
    ),
    "relative_coordinates": _error(
        "All boxes or points of an annotation lie between 0 and 1: these are shares of the image's "
        "sides, and pixels are expected.",
        "Multiply x by the width of the image in pixels, and y by its height.",
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
    "several_labels": _error(
        "A series has several masks, and nothing says which one is meant.",
        "Keep one, or choose it with data.image and data.label.",
    ),
    "several_pages": _error(
        "A picture file has several pages, or is an animation.",
        "Save each page as a file.",
    ),
    "several_series": _error(
        "A folder holds several DICOM volumes where one is expected.",
        "Choose with data.series (series= for predict), or give the folder of one series.",
    ),
    "shape_mismatch": _error(
        "Image and mask have different shapes.", "Export both on the same grid."
    ),
    "spacing_conflict": _error(
        "A NIfTI header states two voxel sizes: the lengths of its affine (sform) and pixdim "
        "differ by more than 1 %. Programs disagree on which one they use (nibabel: the affine; "
        "ITK: pixdim), so every score in mm could be wrong.",
        "Find out which one is true: data.spacing=affine or data.spacing=pixdim, or correct the "
        "header.",
    ),
    "time_limit": _error(
        "Reading the file took longer than the time limit.",
        "Check that it opens in another program; if it is right, raise data.max_seconds.",
    ),
    "too_large": _error(
        "The file declares more than can be read at once, or unpacks to more than it declares.",
        "Check its header; if it is right, raise data.max_gb, or cut the file into parts.",
    ),
    "truncated_file": _error(
        "The file ends before its data do, or its compression is damaged.",
        "Copy or download it again.",
    ),
    "uneven_spacing": _error(
        "The slices are not evenly spaced, or not in a straight stack.",
        "Resample the series to even slices.",
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
