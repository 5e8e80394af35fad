"""Small real files for the tests of mednorm.data."""

import csv

import numpy as np
from PIL import Image


def gradient(height=4, width=6, scale=5):
    """An image without symmetry: value scale·(row·width + column)."""
    return (np.arange(height * width).reshape(height, width) * scale).astype(np.uint8)


def picture(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def table(folder, rows, name="manifest.csv", encoding="utf-8"):
    """Write a manifest; the keys of the first row are its columns."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def text(path, content):
    path.write_text(content, encoding="utf-8")
    return path


def classification(folder, labels, **columns):
    """Write one image a row, and return the rows of a manifest over them."""
    rows = []
    for index, label in enumerate(labels):
        picture(folder / f"{index}.png", gradient() + np.uint8(index))
        row = {"image": f"{index}.png", "label": label}
        row |= {name: values[index] for name, values in columns.items()}
        rows.append(row)
    return rows


def segmentation(folder, masks, splits):
    """Write one image and one mask a row, and return the rows of a manifest over them."""
    rows = []
    for index, (mask, split) in enumerate(zip(masks, splits, strict=True)):
        picture(folder / f"{index}.png", gradient() + np.uint8(index))
        picture(folder / f"mask{index}.png", mask)
        rows.append({"image": f"{index}.png", "mask": f"mask{index}.png", "split": split})
    return rows


THREE = ("train", "val", "test")
