"""Images, masks and labels from MedMNIST files, manifests and the embedded brain template, checked as they are read.

`read` gives an `ImageSet` without touching a pixel file; `ImageSet.load` gives a whole split as tensors; `describe`
says what is in it. MONAI, whose import takes seconds, is loaded when the first pixel file is read.
"""

from mednorm.data.describe import Description as Description
from mednorm.data.describe import Intensity as Intensity
from mednorm.data.describe import describe as describe
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
from mednorm.data.sources import read as read
from mednorm.data.template import tissue as tissue

__all__ = [
    "SPLITS",
    "Arrays",
    "Description",
    "ImageSet",
    "Intensity",
    "Item",
    "Kind",
    "Split",
    "describe",
    "load_image",
    "load_mask",
    "read",
    "read_manifest",
    "read_npz",
    "tissue",
]
