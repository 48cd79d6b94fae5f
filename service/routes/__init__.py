"""The routes that the framework serves, one module a noun. Lookups are in ``service.fast_path``."""

from __future__ import annotations

__all__: list[str] = []
