"""Writes into wheels and source archives of which commit they are, for `dls --version`."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def load_version(root: Path) -> ModuleType:
    """dls/version.py, without the packages that dls needs."""
    spec = importlib.util.spec_from_file_location("dls_version", root / "dls" / "version.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


class CommitHook(BuildHookInterface[Any]):
    """Adds dls/build.json to what is built. An editable installation asks git instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a build. A build of no known commit gets no such file."""
        if version == "editable":
            return
        root = Path(self.root)
        about = load_version(root)
        text = about.build_record(root)
        if text is None or (root / about.BUILD_FILE).exists():
            return
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name, "build.json")
        file.write_text(text, encoding="utf-8")
        build_data["force_include"][str(file)] = about.BUILD_FILE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called after a build."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()
