"""The REST service: rows out of compressed tables, by HTTP. ``service.client`` is its Python client."""

from __future__ import annotations

__all__: list[str] = []
