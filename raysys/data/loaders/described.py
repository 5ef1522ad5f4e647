"""Public layouts that a packaged mapping describes: the mapped importer under a name of its own."""

from pathlib import Path

from raysys.data.loaders.base import Imported, Options
from raysys.data.loaders.mapped import Mapped, MappedOptions

_MAPPINGS = Path(__file__).with_name("mappings")


class Described:
    """Loader of the layout in `mappings/NAME.yaml`; another split is another mapping file."""

    options = Options

    def __init__(self, name: str) -> None:
        self.name, self.version = name, Mapped.version
        self._options = MappedOptions.model_validate({"mapping": _MAPPINGS / f"{name}.yaml"})

    def files(self, src: Path, options: Options) -> list[Path]:
        """The mapping and all files that it names."""
        return Mapped().files(src, self._options)

    def load(self, src: Path, options: Options) -> Imported:
        """As `Mapped`."""
        return Mapped().load(src, self._options)
