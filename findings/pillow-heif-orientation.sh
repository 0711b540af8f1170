#!/usr/bin/env bash
# pillow-heif 1.8.1: a photograph that was taken upright (EXIF orientation 6) and is saved as HEIC with its EXIF lies on its side
# for ever. The file says 6 in its EXIF alone, which readers of HEIF pass over, as only a rotation of the container
# counts; save() writes none. On opening, pillow-heif takes the orientation out of the EXIF and leaves the pixels: exif_transpose
# does nothing. Pillow's own formats keep the orientation on the same way.
#
# Seen, of 64 x 48 px with orientation 6: as JPEG, WebP and AVIF 48 x 64 after exif_transpose, as HEIC 64 x 48.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pillow==13.0.0 pillow-heif==1.8.1
"$work/venv/bin/python" - <<'PY'
import io

import pillow_heif
from PIL import Image, ImageOps

pillow_heif.register_heif_opener()
exif = Image.Exif()
exif[0x0112] = 6
photograph = Image.new("RGB", (64, 48), "red")


def upright(form):
    """Return the size of the photograph, saved in a format with its EXIF, as it is shown."""
    buffer = io.BytesIO()
    photograph.save(buffer, form, exif=exif)  # as people convert what they have
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        said = image.getexif().get(0x0112)
        return ImageOps.exif_transpose(image).size, said


found = {form: upright(form) for form in ("JPEG", "WEBP", "AVIF", "HEIF")}
print("size when shown, and orientation that the opened file says:", found)
assert found["HEIF"][0] == (64, 48)
assert {found[form][0] for form in ("JPEG", "WEBP", "AVIF")} == {(48, 64)}
PY
echo "as described"
