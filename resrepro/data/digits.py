"""scikit-learn's 1,797 handwritten digits: real images that need no download, for demo and tests."""

import numpy as np

from resrepro.data import Dataset, Images

TEST_EVERY = 5  # every fifth image is held out


def load_digits() -> Dataset:
    """The digits upsampled from 8x8 to 16x16, grey repeated into 3 channels; fixed split 1,438 / 359.

    Each pixel of 0..16 becomes a 2x2 square of 0..255.
    """
    from sklearn.datasets import load_digits as bundled

    digits = bundled()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    large = grey.repeat(2, axis=1).repeat(2, axis=2)
    pixels = np.repeat(large[:, None], 3, axis=1)  # (1797, 3, 16, 16)
    labels = digits.target.astype(np.int64)
    held_out = np.arange(len(labels)) % TEST_EVERY == TEST_EVERY - 1
    train, test = Images(pixels[~held_out], labels[~held_out]), Images(pixels[held_out], labels[held_out])
    return Dataset("digits", 10, train, {"test": test}, {"train": train.sha256(), "test": test.sha256()})
