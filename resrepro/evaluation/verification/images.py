"""The checksums of the data at hand, to be compared with those that a record tells of."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from resrepro.data import DATA_VARIABLE, load_dataset
from resrepro.data.folder import scan_both
from resrepro.data.loader import Loading
from resrepro.data.statistics import statistics_of
from resrepro.errors import DataError
from resrepro.records import MALFORMED
from resrepro.spec.specs import FAMILIES

USUAL_SIZE = 224


class DataAtHand:
    """The data in a folder, and the digits, which are always there; each is read once."""

    def __init__(self, folder: Path | None, loading: Loading, say: Callable[[str], None]) -> None:
        if folder is not None and not folder.is_dir():
            raise DataError(f"the data folder {folder} (--data) does not exist: name one that does.")
        named = os.environ.get(DATA_VARIABLE)
        self.given = folder is not None
        self.folder = folder if folder is not None else Path(named) if named else None
        self.loading, self.say = loading, say
        self._known: dict[object, Mapping[str, str] | DataError] = {}

    def compare(self, spec: Mapping[str, Any], env: Mapping[str, Any]) -> tuple[str, str]:
        """A trouble and a note on the data of a run, each empty if there is nothing to say."""
        try:
            dataset, recipe, told = spec["spec"]["dataset"], spec["spec"]["recipe"], env["data"]["sha256"]
            if not self._holds(dataset):
                return "", self._lacking(dataset)
            here = self._checksums(dataset, recipe)
            other = sorted(part for part in told if here.get(part) != told[part])
        except DataError as error:
            return f"the data cannot be compared: {error}", ""
        except MALFORMED:
            return "", ""  # the record itself is broken, which is told elsewhere
        where = f"the data in {self.folder}" if dataset != "digits" else "the digits of this scikit-learn"
        if other:
            return f"{where} are others than it was trained on: checksum of {', '.join(other)} differs.", ""
        return "", "" if dataset == "digits" else f"Its data are those in {self.folder}, by checksum."

    def _lacking(self, dataset: str) -> str:
        return f"Its data ({dataset}) are not in {self.folder}: they were not compared." if self.given else ""

    def _holds(self, dataset: str) -> bool:
        """Whether the folder has the layout of a data set, whatever is in it."""
        if dataset == "digits" or self.folder is None:
            return dataset == "digits"
        if FAMILIES[dataset] == "imagenet":
            return all((self.folder / split).is_dir() for split in ("train", "val"))
        names = ("cifar-10-batches-py", "cifar-10-batches-bin", "data_batch_1", "data_batch_1.bin")
        return any((self.folder / name).exists() for name in names)

    def _checksums(self, dataset: str, recipe: Mapping[str, Any]) -> Mapping[str, str]:
        """The checksums of a data set by part.

        Raises:
            DataError: if it is damaged.
        """
        size = recipe.get("image_size")
        size = size if isinstance(size, int) and 0 < size <= 2 * USUAL_SIZE else USUAL_SIZE
        key = (dataset, str(recipe.get("split")), size)
        if key not in self._known:
            try:
                self._known[key] = self._compute(dataset, key[1], size)
            except DataError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, DataError):
            raise found
        return found

    def _compute(self, dataset: str, split: str, size: int) -> Mapping[str, str]:
        if FAMILIES[dataset] == "cifar":
            folder = None if dataset == "digits" else self.folder
            return load_dataset(dataset, split, folder).checksums
        assert self.folder is not None
        # The size decides nothing but which earlier pass over the files is found in the cache.
        return statistics_of(scan_both(self.folder), size, self.loading, self.say).checksums
