"""Puts the catalogue, which the checkout keeps at its top level, inside the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
FOLDERS = {"gpus": "clusters/gpus", "models": "workloads/models", "engines": "workloads/engines"}


class BuildWithCatalogue(build_py):
    """Copies the catalogue into the package; an editable install reads it in place."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in FOLDERS:
            # A build folder left from before may hold sheets that are gone by now.
            shutil.rmtree(self._catalogue / name, ignore_errors=True)
        for target, source in self._copies().items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_source_files(self) -> list[str]:
        return super().get_source_files() + list(self._copies().values())

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        copied = [] if self.editable_mode else list(self._copies())
        return super().get_outputs(include_bytecode) + copied

    @property
    def _catalogue(self) -> Path:
        return Path(self.build_lib) / "optimizer" / "catalogue"

    def _copies(self) -> dict[str, str]:
        """Source by target, in a stable order."""
        return {
            str(self._catalogue / name / sheet.name): str(sheet.relative_to(ROOT))
            for name, folder in FOLDERS.items()
            for sheet in sorted((ROOT / folder).glob("*.yaml"))
        }


setup(cmdclass={"build_py": BuildWithCatalogue})
