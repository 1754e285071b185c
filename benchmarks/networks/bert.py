"""An encoder of the shape of BERT-base, in plain PyTorch.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019: word and
position embeddings, post-norm blocks of attention and a GELU MLP, and a pooler over the first token. Segment embeddings
are left out: for one segment they are a constant of the position embeddings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Word pieces of the English vocabulary.
VOCABULARY = 30522
_EPSILON = 1e-12


class SelfAttention(nn.Module):
    """Attention with separate projections for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[N, T, width]`` to the same shape."""
        count, tokens, width = x.shape
        q, k, v = (
            layer(x).view(count, tokens, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.output(y.transpose(1, 2).reshape(count, tokens, width))
        return out


class Block(nn.Module):
    """Attention and an MLP, each beside a shortcut and before a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=_EPSILON)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[N, T, width]`` to the same shape."""
        x = self.norm1(x + self.attention(x))
        y: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return y


class Bert(nn.Module):
    """Embeddings, ``depth`` blocks, and a pooler."""

    def __init__(
        self, width: int = 768, depth: int = 12, heads: int = 12, tokens: int = 128, vocabulary: int = VOCABULARY
    ) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(tokens, width)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.pooler = nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token numbers ``[N, T]``, int64, to the pooled first token, ``[N, width]``."""
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])
        pooled: Tensor = torch.tanh(self.pooler(self.blocks(x)[:, 0]))
        return pooled


def bert_base(seed: int = 0) -> Bert:
    """Return the encoder for 128 tokens in evaluation mode: random weights of BERT's size, norms that are not trivial.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomised(Bert()).eval()


def randomised(model: Bert) -> Bert:
    """Give ``model`` random weights as training leaves them: standard deviation 0.04, norms off one and zero."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, 0.04)
            if isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.2)
    return model


def token_batches(
    batches: int, batch_size: int, *, seed: int, tokens: int = 128, vocabulary: int = VOCABULARY
) -> list[Tensor]:
    """Return batches of seeded token numbers, int64 ``[batch_size, tokens]``, few of them frequent, as in text."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, tokens)
    return [(torch.rand(shape, generator=generator) ** 3 * vocabulary).long() for _ in range(batches)]
