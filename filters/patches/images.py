"""The data set's images once more, by number, for the few that made it into a top k.

Decoded in threads, a few hundred kept at hand: neighbouring filters often share images.
"""

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from cnnviz.core.data.datasets import ImageData
from cnnviz.core.data.images import Preprocess, WorkingImage

KEPT = 256
THREADS = 4


class PatchImages:
    """Working images of a data set by index."""

    def __init__(self, data: ImageData, preprocess: Preprocess) -> None:
        self._data, self._preprocess = data, preprocess
        self._kept: OrderedDict[int, WorkingImage] = OrderedDict()

    def _read(self, index: int) -> WorkingImage:
        return self._data.working(index, self._preprocess)

    def fetch(self, indices: Iterable[int]) -> dict[int, WorkingImage]:
        """These images, each decoded at most once.

        Raises:
            CnnvizError: an image that could be read during the scan no longer can.
        """
        wanted = list(dict.fromkeys(indices))
        found = {index: self._kept[index] for index in wanted if index in self._kept}
        missing = [index for index in wanted if index not in found]
        with ThreadPoolExecutor(THREADS) as pool:
            found.update(zip(missing, pool.map(self._read, missing), strict=True))
        for index in wanted:
            self._kept[index] = found[index]
            self._kept.move_to_end(index)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found
