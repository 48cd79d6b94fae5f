"""``VocabularyHead``: where ``nn.Linear(D, V)`` and ``F.cross_entropy`` stood at the end of a language model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hfh_embed.errors import InputError, RatioError, SpecError
from hfh_embed.nn.embedding import Lookup, padding_id
from hfh_embed.nn.generation import draw, largest
from hfh_embed.nn.tiles import Loss, Tiled, check_finite, logits, token_losses

__all__ = ["VocabularyHead"]

BIAS_BYTES = 4


class VocabularyHead(Lookup):
    """An output layer whose (V, D) weight is computed from a pool, and a loss that holds neither it nor the (B, V) logits.

    Args:
        num_embeddings, embedding_dim: V ids and the D entries of a hidden state.
        tie: an HFH embedding of the same size whose table this head uses too; nothing else is given then but ``bias``.
        bias: whether each id has a bias (float32, counted in the ratio of a pool of this head's own), or its first values (V,).
        padding_idx: an id whose row is zero and gets no gradient, as in the embedding: its logit is its bias.
        ratio, pool, name, form, frequencies, std, seed, device, dtype: as :class:`HFHEmbedding`; ``std`` is that of
            ``nn.Linear``'s weights, 1 / sqrt(3 D), unless given.

    Shape: hidden (..., D) to logits (..., V). Products are computed in the hidden states' dtype or that of autocast, sums and
    losses in float32 or float64.

    Raises:
        RatioError, SpecError: the description is impossible, or ties tables that cannot be one.
        InputError: hidden states of another size, dtype or with a NaN or infinity; targets outside the vocabulary.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        tie: Lookup | None = None,
        bias: bool | Tensor = False,
        padding_idx: int | None = None,
        **options: Any,
    ) -> None:
        device, dtype = options.get("device"), options.get("dtype")
        if tie is None:
            options.setdefault("std", 1 / math.sqrt(3 * embedding_dim))
            if options.get("pool") is None:
                options.setdefault("least_uses", 0)
            if bias is not False and options.get("ratio") is not None:
                options["ratio"] = _ratio_beside_bias(num_embeddings, embedding_dim, options["ratio"])
            super().__init__(num_embeddings, embedding_dim, padding_idx, **options)
        else:
            nn.Module.__init__(self)
            _check_tie(tie, num_embeddings, embedding_dim, padding_idx, options)
            self.named = tie.named
            self._take(tie.table)
        if self.spec.kept is not None:
            raise SpecError(
                f"the table keeps {self.spec.num_kept:,} of its {num_embeddings:,} ids, and a head needs the rows of all; "
                "make it with least_uses=0"
            )
        self.tied = tie is not None
        self.bias: nn.Parameter | None = None
        if bias is not False:
            values = torch.zeros(num_embeddings) if bias is True else bias.detach().clone()
            if values.shape != (num_embeddings,):
                raise SpecError(f"the bias has shape {tuple(values.shape)}; give ({num_embeddings},)")
            self.bias = nn.Parameter(values.to(device=device or self._device(), dtype=dtype or torch.float32))

    @property
    def nbytes(self) -> int:
        """Stored bytes of everything on the pool, and of the bias."""
        return super().nbytes + (BIAS_BYTES * self.num_embeddings if self.bias is not None else 0)

    @property
    def ratio(self) -> float:
        """Dense bytes over stored bytes, of everything on the pool and of the bias."""
        dense = self.pool.plan.dense_nbytes if self.pool is not None else self.spec.dense_nbytes
        return (dense + (BIAS_BYTES * self.num_embeddings if self.bias is not None else 0)) / self.nbytes

    def forward(self, hidden: Tensor) -> Tensor:
        """All logits, (..., V): as large as they are, so for few tokens; :meth:`loss` and :meth:`topk` do without."""
        flat = self._flat(hidden)
        return logits(self._tiled(hidden), flat).view(*hidden.shape[:-1], self.num_embeddings)

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor:
        """Cross entropy of hidden (..., D) against the ids targets (...), as ``F.cross_entropy`` of the logits.

        Args:
            ignore_index: targets that cost nothing; they are left out before anything is computed.
            reduction: "mean" over the targets that count, "sum", or "none" for the shape of the targets.
            label_smoothing: share of a target that is spread over the whole vocabulary.
            z_loss: factor of log(sum(exp(logits))) ** 2, added to every token's loss (arXiv 2204.02311).

        If all targets are ignored the loss is 0 and so is its gradient, where torch has NaN.
        """
        flat = self._flat(hidden)
        _check_options(reduction, label_smoothing, z_loss)
        flat_targets = self._targets(hidden, targets, ignore_index)
        if not len(flat):
            raise InputError("the batch has no tokens; skip it")
        check_finite(flat.detach())
        kept = flat_targets != ignore_index
        tiled = self._tiled(hidden)
        places = None if bool(kept.all()) else torch.nonzero(kept)[:, 0]
        if places is not None:
            flat, flat_targets = flat[places], flat_targets[places]
        losses = token_losses(tiled, flat, Loss(flat_targets, label_smoothing, z_loss))
        if reduction == "none":
            whole = losses if places is None else losses.new_zeros(len(kept)).index_copy(0, places, losses)
            return whole.view(targets.shape)
        return losses.sum() / max(1, len(losses)) if reduction == "mean" else losses.sum()

    def topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest logits of hidden (..., D) and their ids, (..., k) each, best first; float32 or float64, without gradients."""
        self._check_count("k", k)
        flat = self._checked(hidden)
        values, ids = largest(self._tiled(hidden), flat, k)
        return values.view(*hidden.shape[:-1], k), ids.view(*hidden.shape[:-1], k)

    def sample(
        self,
        hidden: Tensor,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One id drawn for every hidden state (..., D) from the softmax of its logits: (...).

        Args:
            temperature: divides the logits; 0 takes the largest.
            top_k: draw only from the k largest.
            top_p: and only from the fewest, best first, that hold this probability.
            generator: of the one uniform number for each hidden state.
        """
        if not (math.isfinite(temperature) and temperature >= 0):
            raise InputError(f"temperature is {temperature!r}; give 0 or a positive number")
        if top_k is not None:
            self._check_count("top_k", top_k)
        if top_p is not None and not 0 < top_p <= 1:
            raise InputError(f"top_p is {top_p!r}; give a probability above 0, at most 1")
        flat = self._checked(hidden)
        return draw(self._tiled(hidden), flat, temperature, top_k, top_p, generator).view(hidden.shape[:-1])

    def _tiled(self, hidden: Tensor) -> Tiled:
        kind = hidden.device.type
        autocast = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
        return Tiled(self.table, self.bias, torch.get_autocast_dtype(kind) if autocast else hidden.dtype)

    def _flat(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, D), checked but for their values."""
        if not hidden.is_floating_point():
            raise InputError(f"hidden states have dtype {hidden.dtype}; give floats")
        if hidden.dim() < 1 or hidden.shape[-1] != self.embedding_dim:
            raise InputError(
                f"hidden states have shape {tuple(hidden.shape)}; their last size must be {self.embedding_dim}"
            )
        own = next((p.dtype for p in self.table.parameters()), torch.float32)
        if (hidden.dtype == torch.float64) != (own == torch.float64):
            raise InputError(
                f"hidden states are {hidden.dtype} and the head's parameters {own}; convert one with .to()"
            )
        return hidden.reshape(-1, self.embedding_dim)

    def _checked(self, hidden: Tensor) -> Tensor:
        """Finite hidden states (B, D) without gradients, in the dtype of products."""
        flat = self._flat(hidden).detach()
        check_finite(flat)
        return flat.to(self._tiled(hidden).dtype)

    def _targets(self, hidden: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        if targets.dtype not in (torch.int32, torch.int64):
            raise InputError(f"targets have dtype {targets.dtype}; give ids as int32 or int64")
        if targets.shape != hidden.shape[:-1]:
            raise InputError(
                f"targets have shape {tuple(targets.shape)} and hidden states {tuple(hidden.shape)}; "
                f"give one target for each, {tuple(hidden.shape[:-1])}"
            )
        flat = targets.reshape(-1).long()
        wrong = ((flat < 0) | (flat >= self.num_embeddings)) & (flat != ignore_index)
        if bool(wrong.any()):
            place = int(torch.nonzero(wrong)[0, 0])
            raise InputError(
                f"target {int(flat[place])} at position {place} is outside the vocabulary, which has ids 0 to "
                f"{self.num_embeddings - 1}; ignore_index is {ignore_index}"
            )
        return flat

    def _check_count(self, what: str, k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= self.num_embeddings:
            raise InputError(
                f"{what} is {k!r}; give a number from 1 to {self.num_embeddings}, the size of the vocabulary"
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bias={self.bias is not None}, tied={self.tied}"


def _check_options(reduction: str, label_smoothing: float, z_loss: float) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise InputError(f"reduction is {reduction!r}; allowed are mean, sum and none")
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"label_smoothing is {label_smoothing!r}; give a share from 0 to 1")
    if not (math.isfinite(z_loss) and z_loss >= 0):
        raise InputError(f"z_loss is {z_loss!r}; give 0 or a positive factor")


def _check_tie(
    tie: Lookup, num_embeddings: int, embedding_dim: int, padding_idx: int | None, options: dict[str, Any]
) -> None:
    """SpecError unless the embedding's table can be the head's as it is."""
    if not isinstance(tie, Lookup):
        raise SpecError(f"tie is {type(tie).__name__}; give an HFH embedding, its table becomes the head's")
    if (tie.num_embeddings, tie.embedding_dim) != (num_embeddings, embedding_dim):
        raise SpecError(
            f"the head has {num_embeddings} x {embedding_dim} and the embedding that it is tied to "
            f"{tie.num_embeddings} x {tie.embedding_dim}; tied tables are one, so give the same sizes"
        )
    if padding_idx is not None and padding_id(padding_idx, num_embeddings) != tie.padding_idx:
        raise SpecError(f"padding_idx is {padding_idx} and the tied embedding's {tie.padding_idx}; leave it out")
    if (pool := options.pop("pool", None)) is not None and pool is not tie.pool:
        raise SpecError("the tied embedding reads another pool than the one given; leave pool out, or do not tie")
    if (name := options.pop("name", None)) is not None and name != tie.spec.name:
        raise SpecError(f"name is {name!r} and the tied table is {tie.spec.name!r}; leave it out")
    given = [option for option, value in options.items() if value is not None and option not in ("device", "dtype")]
    if given:
        raise SpecError(f"{', '.join(sorted(given))}: a tied head has all that from its embedding; leave it out")


def _ratio_beside_bias(num_embeddings: int, embedding_dim: int, ratio: float) -> float:
    """The ratio of the rows alone, so that with a bias the head as a whole reaches ``ratio``."""
    dense, bias = 4 * num_embeddings * embedding_dim, BIAS_BYTES * num_embeddings
    left = (dense + bias) / ratio - bias
    if left <= 0:
        nearest = (dense + bias) / (2 * bias)
        raise RatioError(
            f"at ratio {ratio:g} the bias alone takes all bytes; leave it out, or give at most {nearest:g}", nearest
        )
    return max(1.0, dense / left)
