"""Problems that make a case, or the whole data set, unusable; see ``codes.py``."""

from __future__ import annotations

from samadapt.data.findings import Code


def _error(meaning: str, fix: str) -> Code:
    return Code("error", meaning, fix)


ERRORS = {
    "alpha_mask": _error(
        "The mask seems to be stored in the alpha channel (transparency) of the file. Only the "
        "other channels are read.",
        "Save the alpha channel as a grey PNG. If the other channels hold the mask, remove the "
        "alpha channel instead.",
    ),
    "annotation_class": _error(
        "An annotation uses a class name that is not in the class list.",
        "Correct the name in the JSON file, or add the class with data.classes={name: value}.",
    ),
    "annotation_schema": _error(
        "An annotation file is not JSON, or its content does not follow the schema for boxes, "
        "points and labels.",
        "Compare the file with the schema at the top of samadapt/data/annotations.py.",
    ),
    "bad_annotations": _error(
        "An annotation file (COCO, SA-1B, labelme or YOLO) does not follow the definition of its "
        "format. The message names the entry.",
        "Export the file again from the annotation program.",
    ),
    "bad_contours": _error(
        "A contour of a DICOM RTSTRUCT object is not on any slice of the image, or it is not a "
        "list of points.",
        "Export the structure set together with the image series on which it was drawn.",
    ),
    "bad_dataset_json": _error(
        "dataset.json has no labels, or one of its entries does not follow the MSD or nnU-Net "
        "format.",
        "Correct dataset.json. The message names the entry.",
    ),
    "bad_geometry": _error(
        "A DICOM header gives an orientation or a spacing that is impossible, such as axes that "
        "are not perpendicular.",
        "Export the series again.",
    ),
    "bad_header": _error(
        "The header of the volume contains values that cannot be used.",
        "Export the volume again.",
    ),
    "bad_pattern": _error(
        "The pattern in data.image or data.label cannot be used. It contains **, or its * do not "
        "tell the cases apart.",
        "Write one * for each part of the path that differs between files. The last * gives the "
        "name of the case.",
    ),
    "bad_segmentation": _error(
        "A polygon, a run-length code or a segment of a mask cannot be decoded.",
        "Export the annotation again.",
    ),
    "bad_shape": _error(
        "The image has too few or too many axes, or an axis of length 0.",
        "Check how the file was made. If it holds a series of volumes, save each volume as a file.",
    ),
    "bad_spacing": _error(
        "The voxel spacing is zero, negative or not a number, or the affine matrix cannot be "
        "inverted.",
        "Write the true spacing and orientation into the header.",
    ),
    "bad_split": _error(
        "The requested division into training and validation is not possible: it names an unknown "
        "case, or the same case or patient is in both splits.",
        "Correct the split. Keep all cases of a patient in one split.",
    ),
    "blended_colours": _error(
        "A colour mask has smoothed edges. It contains many colours that no class uses, and most "
        "of them are rare.",
        "Export the mask without smoothing (nearest-neighbour interpolation). Or set "
        "data.background=rest, so that every colour without a class counts as background.",
    ),
    "box_outside": _error(
        "A box of an annotation is outside the image.",
        "Give boxes as [x0, y0, x1, y1] in pixels of the original image.",
    ),
    "broken_dataset_json": _error(
        "dataset.json cannot be parsed as a JSON object.",
        "Correct the file.",
    ),
    "broken_json": _error(
        "A JSON file cannot be parsed. The message names the line.",
        "Copy the file again or export it again.",
    ),
    "category_conflict": _error(
        "Two annotation files use the same category number for different names.",
        "Use the same numbers in all files.",
    ),
    "channel_choice": _error(
        "The images have several channels, and no channel is chosen, or the chosen one does not "
        "exist.",
        "Choose one channel, or up to three, by name or number with data.channel.",
    ),
    "colour_dicom": _error(
        "A DICOM image has colours in a form that is not read. Only single 8-bit colour pictures "
        "and grey images stored as RGB are read.",
        "Leave the file out, or save its frames as PNG and use data=folder.",
    ),
    "colour_mask": _error(
        "A mask is a colour image, and data.classes does not say which colour is which class.",
        'Name the classes by colour, for example data.classes={liver: "#ff0000"}. Or save the mask '
        "with class numbers as pixel values.",
    ),
    "colour_range": _error(
        "The colours are neither 8-bit values (0 to 255) nor fractions (0 to 1).",
        "Scale the values and save the file again.",
    ),
    "colour_volume": _error(
        "An array holds a stack of colour pictures. A volume must have one value for each voxel.",
        "Save each picture as a separate file.",
    ),
    "compressed_dicom": _error(
        "The DICOM pixels use a compression that needs an additional package.",
        "Decompress the series, or install the plugins of pylibjpeg.",
    ),
    "constant_image": _error(
        "All voxels of the image have the same value, so the image shows nothing.",
        "Export the image again.",
    ),
    "dangling_annotation": _error(
        "An annotation refers to an image or a category that the file does not list.",
        "Export the annotation file again.",
    ),
    "duplicate_case": _error(
        "Two files belong to the same case name.",
        "Keep one of the two files, or rename it.",
    ),
    "duplicate_leak": _error(
        "The same image is in the training cases and in the validation cases. The model would be "
        "scored on an image that it was trained on, so finetune and evaluate stop as well.",
        "Remove one of the two copies. Or set data.on_error=skip, which keeps only the first copy.",
    ),
    "duplicate_position": _error(
        "Two slices of a DICOM series have the same position.",
        "Keep each slice only once.",
    ),
    "empty_file": _error("The file has 0 bytes.", "Copy or download it again."),
    "exif_orientation": _error(
        "The EXIF orientation of a picture tells viewers to turn or mirror it. Its mask or "
        "annotation was drawn on the stored, unturned pixels, or it is unclear on which of the two "
        "it was drawn.",
        "Set data.exif=apply if masks were drawn on the picture as viewers show it. Set "
        "data.exif=ignore if they were drawn on the stored pixels. Or save the pictures upright, "
        "without EXIF orientation.",
    ),
    "file_ending": _error(
        "dataset.json declares images in a format that this reader cannot read.",
        "Convert the images, or choose another reader with data=NAME.",
    ),
    "fractional_segments": _error(
        "A DICOM segmentation is of the type FRACTIONAL: its voxels hold probabilities or "
        "fractions, not labels.",
        "Export it as a BINARY segmentation.",
    ),
    "grey_levels": _error(
        "The values of a mask are grey levels from smoothed edges, as paint programs and resizing "
        "produce them. They are not class numbers.",
        "Set data.mask_threshold, so that higher values are foreground and lower values are "
        "background. Or export the mask without smoothing.",
    ),
    "grid_mismatch": _error(
        "Image and mask have the same shape, but their headers place them at different positions "
        "in space.",
        "Resample the mask to the grid of the image. If the affine of the image is right for both, "
        "copy it to the mask.",
    ),
    "label_value": _error(
        "A mask holds values that are not in the class list.",
        "Correct the mask, or list the classes to use with data.classes={name: value}.",
    ),
    "lossy_mask": _error(
        "A mask is saved with lossy compression (JPEG, or WebP in its lossy form), which changes "
        "pixel values at edges.",
        "Export the mask again as PNG.",
    ),
    "mask_channels": _error(
        "A mask has several numbers for each voxel, as one-hot labels do. One class number for "
        "each voxel is expected.",
        "Convert the mask to one number for each voxel, for example with numpy.argmax(mask, "
        "axis=-1) if channel 0 is the background.",
    ),
    "missing_dataset_json": _error(
        "A folder in the MSD or nnU-Net layout has no dataset.json.",
        "Add the file. Or name the files yourself with data.image, data.label and data.classes.",
    ),
    "missing_file": _error("A file that is named does not exist.", "Check the path."),
    "missing_folder": _error(
        "The folder of the data set, or the folder of its images, does not exist.",
        "Set data.root to the folder of the data set.",
    ),
    "missing_geometry": _error(
        "A DICOM series does not say where its slices are in space.",
        "Export the original series.",
    ),
    "missing_image": _error(
        "A mask or an annotation has no image.",
        "Add the image, or remove the file.",
    ),
    "missing_key": _error(
        "An .npz file does not contain an array that is expected.",
        "Export the file again.",
    ),
    "missing_label": _error(
        "An image has no mask.",
        "Add the mask, or move the image to another folder.",
    ),
    "missing_package": _error(
        "Reading this format needs a package that is not installed.",
        "Install the extra that the message names.",
    ),
    "missing_slices": _error(
        "Slices are missing in the middle of a DICOM series.",
        "Export the complete series again.",
    ),
    "mixed_encodings": _error(
        "Some masks mark the foreground with 1 and others with 255. Either these are two encodings "
        "of the same class, or 255 marks pixels without a class.",
        "Set data.classes={foreground: [1, 255]} for one class, or data.ignore=255 if 255 means "
        "not annotated.",
    ),
    "mixed_labels": _error(
        "A DICOM series has labels in two kinds of files.",
        "Keep one kind of label.",
    ),
    "mixed_orientations": _error(
        "The slices of one DICOM series have different orientations.",
        "Separate them into one series for each orientation.",
    ),
    "mixed_sizes": _error(
        "The slices of one DICOM series have different sizes.",
        "Keep slices of one size in a series.",
    ),
    "no_cases": _error(
        "The folder contains no image that this reader can read.",
        "Check data.root, and choose the reader of your format with data=NAME.",
    ),
    "no_objects": _error(
        "No mask contains a pixel of any class, so there is nothing to learn and nothing to score.",
        "Check that these are the right mask files, and check the values in data.classes.",
    ),
    "no_series": _error(
        "No DICOM series matches data.series.",
        "Choose one of the series that the message lists.",
    ),
    "non_finite_voxels": _error(
        "Some voxels are NaN or infinite.",
        "Replace them with the value of the background, and save the file again.",
    ),
    "non_integer_labels": _error(
        "A mask contains fractions, which happens when a mask is interpolated.",
        "Export the mask again with nearest-neighbour interpolation.",
    ),
    "not_dicom": _error(
        "A file has a DICOM name but no DICOM content.",
        "Remove the file, or copy it again.",
    ),
    "not_nifti": _error(
        "The file is not a single-file NIfTI image, although its name says so.",
        "Follow the message, which says what the content is. Or convert it to .nii.gz again.",
    ),
    "not_read": _error(
        "samadapt does not read this kind of file (Analyze 7.5, a NIfTI pair of .hdr and .img, "
        "FreeSurfer or MINC).",
        "Convert the file to .nii.gz with the command in the message.",
    ),
    "object_numbers": _error(
        "The masks number their objects: each mask holds the values 1 to n, and nearly every value "
        "is one connected region. No classes are declared, so every number would become a class of "
        "its own.",
        "Set data.instances=true, so that each number is one object of a single class. Or declare "
        "the classes with data.classes.",
    ),
    "only_localizers": _error(
        "A DICOM series contains only localizers (scouts) in several orientations, and no scan.",
        "Add the scan, or leave the folder out.",
    ),
    "other_frame": _error(
        "A region of a DICOM RTSTRUCT object uses another frame of reference than the image, so "
        "its position in the image is unknown.",
        "Register the region to the image, or remove it.",
    ),
    "outside_image": _error(
        "Contours of a DICOM RTSTRUCT object are outside the image.",
        "Export the structure set that belongs to this series.",
    ),
    "overlapping_segments": _error(
        "Segments of a DICOM or 3D Slicer segmentation overlap. Here a voxel can have only one "
        "class.",
        "Export segments that do not overlap, or choose segments that do not overlap with "
        "data.classes=[NAME].",
    ),
    "palette_background": _error(
        "In masks with a palette, index 0 is read as background. Here index 0 is not black, or "
        "black has another index, so object and background may be exchanged.",
        'Name the colour of the background, for example data.background="#000000".',
    ),
    "palette_conflict": _error(
        "The palettes of the masks differ, so the same palette index means different classes in "
        "different files.",
        'Name the classes by colour, for example data.classes={liver: "#ff0000"}.',
    ),
    "palette_double": _error(
        "Two palette indices of a mask are in use and have the same colour.",
        "Save the class numbers as a grey PNG, or name the classes by colour in data.classes.",
    ),
    "path_outside": _error(
        "A file of the data set refers to another file outside the folder of the data set. Such "
        "files are not read.",
        "Move all files into the folder of the data set, and use paths relative to it.",
    ),
    "pickled_array": _error(
        "An array is stored as a Python pickle, which could run harmful code when it is read.",
        "Save plain numeric arrays.",
    ),
    "point_outside": _error(
        "A point of an annotation is outside the image.",
        "Give points as [x, y] in pixels of the original image.",
    ),
    "relative_coordinates": _error(
        "All boxes or points of an annotation are between 0 and 1, so they are fractions of the "
        "image size. Pixels are expected.",
        "Multiply x by the width of the image in pixels, and y by its height.",
    ),
    "several_acquisitions": _error(
        "Several slices of a DICOM series have the same position, because the folder contains "
        "several acquisitions, echoes or time points.",
        "Put each acquisition into a separate folder.",
    ),
    "several_colours": _error(
        "Apart from the background, the masks have several colours, and nothing says which colour "
        "is which class.",
        'Name the classes by colour, for example data.classes={liver: "#ff0000"}.',
    ),
    "several_labels": _error(
        "A series has several masks, and nothing says which one to use.",
        "Keep one of them, or choose with data.image and data.label.",
    ),
    "several_pages": _error(
        "A picture file has several pages or is an animation.",
        "Save each page as a separate file.",
    ),
    "several_series": _error(
        "A folder contains several DICOM volumes where one is expected.",
        "Choose one with data.series (series= for predict), or give the folder of one series.",
    ),
    "shape_mismatch": _error(
        "Image and mask have different shapes.",
        "Export both on the same grid.",
    ),
    "spacing_conflict": _error(
        "A NIfTI header states two different voxel sizes: the lengths in its affine matrix (sform) "
        "and pixdim differ by more than 1 %. Programs disagree on which one they use (nibabel uses "
        "the affine, ITK uses pixdim), so every score in mm could be wrong.",
        "Find out which one is true. Then set data.spacing=affine or data.spacing=pixdim, or "
        "correct the header.",
    ),
    "time_limit": _error(
        "Reading the file took longer than the time limit.",
        "Check that the file opens in another program. If it does, raise data.max_seconds.",
    ),
    "too_large": _error(
        "The file declares more content than can be read at once, or it unpacks to more than it "
        "declares.",
        "Check the header of the file. If it is right, raise data.max_gb, or cut the file into "
        "parts.",
    ),
    "truncated_file": _error(
        "The file ends too early, or its compressed content is damaged.",
        "Copy or download it again.",
    ),
    "uneven_spacing": _error(
        "The distances between the slices differ, or the slices are not in a straight stack.",
        "Resample the series to evenly spaced slices.",
    ),
    "unreadable_image": _error(
        "The file cannot be read. The message quotes the error of the library that reads it.",
        "Check that the file opens in another program. If it does not, remove it.",
    ),
    "unsupported_dtype": _error(
        "The voxels are complex numbers, colours or of another type. One real number for each "
        "voxel is expected.",
        "Save the volume as int16 or float32.",
    ),
    "void_value": _error(
        "The masks contain 255 beside small class numbers, and no classes are declared. PASCAL "
        "VOC, Cityscapes and others use 255 for pixels without a class.",
        "Set data.ignore=255, or list the classes with data.classes={name: value}.",
    ),
}
