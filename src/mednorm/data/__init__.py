"""Images, masks and labels from MedMNIST files, manifests and the embedded brain template, checked as they are read.

`read` gives an `ImageSet` without touching a pixel file; `ImageSet.load` gives a whole split as tensors; `describe`
says what is in it. `read_image` gives one file or DICOM series with its place in the patient, and `write_mask` writes
a mask on it. MONAI, whose import takes seconds, is loaded when the first pixel file is read.
"""

from mednorm.data.collect import manifest_of_folders as manifest_of_folders
from mednorm.data.describe import Description as Description
from mednorm.data.describe import Intensity as Intensity
from mednorm.data.describe import describe as describe
from mednorm.data.geometry import Geometry as Geometry
from mednorm.data.geometry import Image as Image
from mednorm.data.geometry import check_uniform as check_uniform
from mednorm.data.geometry import geometry_of as geometry_of
from mednorm.data.geometry import read_image as read_image
from mednorm.data.images import SPLITS as SPLITS
from mednorm.data.images import Arrays as Arrays
from mednorm.data.images import ImageSet as ImageSet
from mednorm.data.images import Item as Item
from mednorm.data.images import Kind as Kind
from mednorm.data.images import Split as Split
from mednorm.data.manifest import read_manifest as read_manifest
from mednorm.data.npz import read_npz as read_npz
from mednorm.data.pixels import load_image as load_image
from mednorm.data.pixels import load_mask as load_mask
from mednorm.data.series import read_series as read_series
from mednorm.data.sources import read as read
from mednorm.data.splits import Fold as Fold
from mednorm.data.splits import cross_validation as cross_validation
from mednorm.data.splits import hold_out_site as hold_out_site
from mednorm.data.splits import own_splits as own_splits
from mednorm.data.splits import share_of as share_of
from mednorm.data.template import tissue as tissue
from mednorm.data.writers import write_mask as write_mask

__all__ = [
    "SPLITS",
    "Arrays",
    "Description",
    "Fold",
    "Geometry",
    "Image",
    "ImageSet",
    "Intensity",
    "Item",
    "Kind",
    "Split",
    "check_uniform",
    "cross_validation",
    "describe",
    "geometry_of",
    "hold_out_site",
    "load_image",
    "load_mask",
    "manifest_of_folders",
    "own_splits",
    "read",
    "read_image",
    "read_manifest",
    "read_npz",
    "read_series",
    "share_of",
    "tissue",
    "write_mask",
]
