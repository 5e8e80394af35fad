"""DICOM slices for the tests of mednorm.data: pydicom's small CT with other tags and 4 × 6 pixels."""

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
# Rows run along (0.6, 0.8, 0), columns along (0, 0, -1): no two axes of the patient are alike.
OBLIQUE = (0.6, 0.8, 0.0, 0.0, 0.0, -1.0)
NORMAL = {AXIAL: (0.0, 0.0, 1.0), OBLIQUE: (-0.8, 0.6, 0.0)}
ORIGIN = (-10.0, 20.0, 30.0)
# By names that sort otherwise than the slices lie.
NAMES = ("m.dcm", "c.dcm", "IM0007", "a.dcm", "z.dcm", "1.2.840.9")


def stored(number):
    """Pixels of a slice, without symmetry, and different in each."""
    return (np.arange(24).reshape(4, 6) * 3 + 100 * number).astype(np.int16)


def dicom(path, number=0, **tags):
    """Write one slice; a tag that is None is left out."""
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.Rows, dataset.Columns = 4, 6
    dataset.PixelData = stored(number).tobytes()
    dataset.InstanceNumber = number + 1
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.75], 9.0  # thickness is not the distance
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


def place(height, orientation=AXIAL):
    """Where a slice lies that is so many mm along the normal."""
    return [float(start + height * along) for start, along in zip(ORIGIN, NORMAL[orientation], strict=True)]


def series(folder, heights=(0, 2.5, 5, 7.5), orientation=AXIAL, names=NAMES, **tags):
    """Write a slice for each height, numbered in that order; of a tag that is a list, each has its own."""
    for number, (height, name) in enumerate(zip(heights, names, strict=False)):
        where = {"ImagePositionPatient": place(height, orientation), "ImageOrientationPatient": list(orientation)}
        own = {tag: value[number] if isinstance(value, list) else value for tag, value in tags.items()}
        dicom(folder / name, number, **(where | own))
    return folder
