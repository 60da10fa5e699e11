import numpy as np
from PIL import Image

from mmmask_samples.images import SIZES


def test_every_file_is_a_jpeg_of_a_known_size(corpus):
    files = list(corpus["images"].rglob("*.jpg"))
    assert files
    sizes = set()
    for path in files:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert image.mode == "RGB"
            assert (image.height, image.width) in SIZES
            assert np.asarray(image).std() > 10
            sizes.add(image.size)
    assert len(sizes) > 3
