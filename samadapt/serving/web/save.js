/** Save masks as files of the user, on the grid of the image. */

/** The formats of an image, by the name that the server gives them. */
export function formatsOf(study) {
  if (study.isVolume) return { "nii.gz": "NIfTI" };
  return { png: "PNG of labels", json: "COCO" };
}

export async function save(study, format, objects) {
  const content = await study.api.file(format, objects);
  const stem = study.file.name.replace(/(\.nii)?\.[^.]*$/i, "");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = format === "json" ? `${stem}_coco.json` : `${stem}_mask.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  return link.download;
}
