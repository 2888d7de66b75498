"""Imported before all else: a benchmark does without what transformers would import beside, as every command does."""

from __future__ import annotations

from shoal.blocks.lean import leave_out

leave_out()
