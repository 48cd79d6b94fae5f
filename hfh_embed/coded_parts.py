"""Parts of rows of an already trained table: codes into codebooks, and rings of bits."""

from __future__ import annotations

from dataclasses import dataclass

from hfh_embed.parts import MAX_CHUNKS, MAX_DIM, MAX_RUNS, check, check_bits, check_range

__all__ = ["CodeChunk", "CodedSpec", "StepRun", "TrellisSpec"]


@dataclass(frozen=True)
class CodeChunk:
    """One codebook: latent entries ``start : start + size`` of every id, by a code of ``bits`` bits. Chunks may overlap (residual codes add up)."""

    start: int
    size: int
    bits: int

    def __post_init__(self) -> None:
        check_range("a code chunk's start", self.start, 0, MAX_DIM)
        check_range("a code chunk's size", self.size, 1, MAX_DIM)
        check_range("a code's bits", self.bits, 1, 16)


@dataclass(frozen=True)
class CodedSpec:
    """Rows of an already trained table: stored addresses (codes) into codebooks of ``codebook_bits``-bit values.

    With ``row_scale`` the coded entries of each id are multiplied by a float16 of its own (rows of very different norms).
    """

    chunks: tuple[CodeChunk, ...]
    codebook_bits: int = 16
    row_scale: bool = False

    def __post_init__(self) -> None:
        check_bits("codebook_bits", self.codebook_bits, (4, 8, 16, 32))
        check(0 < len(self.chunks) <= MAX_CHUNKS, f"{len(self.chunks)} code chunks; give 1 to {MAX_CHUNKS}")

    @property
    def code_bits(self) -> int:
        """Bits of all the codes of one id."""
        return sum(chunk.bits for chunk in self.chunks)

    @property
    def codebook_values(self) -> int:
        """Values in all codebooks together."""
        return sum(chunk.size << chunk.bits for chunk in self.chunks)


@dataclass(frozen=True)
class StepRun:
    """``steps`` steps of a trellis, each of which appends ``bits`` bits to a row's ring and gives ``entries`` latent entries."""

    steps: int
    entries: int
    bits: int

    def __post_init__(self) -> None:
        check_range("a run's steps", self.steps, 1, MAX_DIM)
        check_range("a step's entries", self.entries, 1, 8)
        check_range("a step's bits", self.bits, 1, 12)


@dataclass(frozen=True)
class TrellisSpec:
    """Rows of an already trained table as rings of bits, of which every window of ``state_bits`` bits names a value.

    The first latent entries come from the runs' steps in their order. Entry ``v`` of a run's steps has a codebook of its own with
    one ``value_bits``-bit integer for each window. With ``norm_bits`` a code of that many bits names a factor of the id's entries,
    and with ``constant`` one more entry follows that is this factor alone.
    """

    runs: tuple[StepRun, ...]
    state_bits: int
    value_bits: int = 8
    norm_bits: int = 0
    constant: bool = False

    def __post_init__(self) -> None:
        check(0 < len(self.runs) <= MAX_RUNS, f"{len(self.runs)} runs of steps; give 1 to {MAX_RUNS}")
        check_range("state_bits", self.state_bits, 1, 16)
        check_bits("value_bits", self.value_bits, (8, 16))
        check_range("norm_bits", self.norm_bits, 0, 8)
        check(not self.constant or self.norm_bits > 0, "a constant entry needs norm_bits")
        check_range("entries of all steps", self.entries, 1, MAX_DIM)
        longest = max(run.bits for run in self.runs)
        check(
            longest <= self.state_bits <= self.ring_bits,
            f"state_bits is {self.state_bits}; it must be from a step's bits ({longest}) to a row's ({self.ring_bits})",
        )

    @property
    def entries(self) -> int:
        """Latent entries that the steps give."""
        return sum(run.steps * run.entries for run in self.runs)

    @property
    def width(self) -> int:
        """Latent entries in all."""
        return self.entries + self.constant

    @property
    def ring_bits(self) -> int:
        """Bits of one id's ring."""
        return sum(run.steps * run.bits for run in self.runs)

    @property
    def row_bits(self) -> int:
        """Bits of one id."""
        return self.norm_bits + self.ring_bits

    @property
    def books(self) -> int:
        """Codebooks, each of ``2**state_bits`` values."""
        return sum(run.entries for run in self.runs)
