"""CLIP's text encoder, and a prompt for each identity of which four words are learned (CLIP-ReID's first stage).

Source: Li et al., CLIP-ReID: Exploiting Vision-Language Model for Image Re-identification without Concrete Text Labels,
AAAI 2023, sec. 3.2.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from model.backbones.transformers.clip import CLIPBlock
from model.pretrained import load_weights, unwrap_state_dict
from utils.checkpoint import read_checkpoint

# "A photo of a X X X X person." by CLIP's numbers of words, without its vocabulary: what stands before and behind the
# learned words; the first number begins a text, the last ends it.
BEFORE, BEHIND = (49406, 320, 1125, 539, 320), (2533, 269, 49407)
LEARNED = 4
_DEEPEST = 48  # blocks of a text encoder; those that were published have 12 to 32
_TEXT_NAMES = ("transformer.", "positional_embedding", "ln_final.", "text_projection")


class TextEncoder(nn.Module):
    """Embedded words that end with the end of the text [N, L, C] -> [N, D]; what would follow cannot be seen."""

    def __init__(self, length: int, width: int, depth: int, feat_dim: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(length, width).normal_(std=0.01))
        self.transformer = nn.Module()
        blocks = (CLIPBlock(width, max(width // 64, 1), causal=True) for _ in range(depth))
        self.transformer.resblocks = nn.Sequential(*blocks)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, feat_dim).normal_(std=width**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.transformer.resblocks(x + self.positional_embedding[: x.shape[1]])
        return self.ln_final(x[:, -1]) @ self.text_projection


class Prompts(nn.Module):
    """Identities [B] -> features [B, D] of their texts; nothing but the learned words `cls_ctx` [K, 4, C] learns.

    Args:
        encoder: the text encoder.
        before, behind: [n, C] the embedded words around the learned ones.
        num_class: K.
    """

    def __init__(self, encoder: TextEncoder, before: Tensor, behind: Tensor, num_class: int):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.register_buffer("before", before)
        self.register_buffer("behind", behind)
        self.cls_ctx = nn.Parameter(torch.empty(num_class, LEARNED, before.shape[1]).normal_(std=0.02))

    def forward(self, pids: Tensor) -> Tensor:
        fixed = [words.expand(pids.shape[0], -1, -1) for words in (self.before, self.behind)]
        return self.encoder(torch.cat([fixed[0], self.cls_ctx[pids], fixed[1]], dim=1))


def read_prompts(path: str | Path, num_class: int) -> Prompts:
    """Prompts that nothing was learned of yet, with the text encoder of a file.

    Args:
        path: weights of CLIP (OpenAI's or OpenCLIP's names) or a checkpoint of CLIP-ReID.
        num_class: K, identities in training.
    Raises:
        ValueError: the file has no text encoder, or weights of it are missing.
    """
    state = unwrap_state_dict(read_checkpoint(path), path)
    if "prompt_learner.token_prefix" in state:
        before, behind = (_words(state, f"prompt_learner.{name}", 3, path)[0]
                          for name in ("token_prefix", "token_suffix"))
        behind = behind[: len(BEHIND)]
        text = {key.removeprefix("text_encoder."): value for key, value in state.items()
                if key.startswith("text_encoder.")}
    elif "token_embedding.weight" in state:
        words = _words(state, "token_embedding.weight", 2, path)
        if len(words) <= max(*BEFORE, *BEHIND):
            raise ValueError(f"{path}: its vocabulary has {len(words)} words, and CLIP's has more; name CLIP's weights")
        before, behind = (words[list(ids)] for ids in (BEFORE, BEHIND))
        text = {key: value for key, value in state.items() if key.startswith(_TEXT_NAMES)}
    else:
        raise ValueError(f"{path}: has no text encoder (neither token_embedding.weight nor prompt_learner.*), and "
                         "prompts are learned through one; name CLIP's weights, or train the image encoder without "
                         "MODEL.PROMPTS")
    depth = len({key.split(".")[2] for key in text if key.startswith("transformer.resblocks.")})
    if depth > _DEEPEST:
        raise ValueError(f"{path}: its text encoder has {depth} blocks; CLIP's have {_DEEPEST} at most")
    projection, places = (_words(text, name, 2, path) for name in ("text_projection", "positional_embedding"))
    shape = len(places), before.shape[-1], depth, projection.shape[1]
    with torch.device("meta"):
        numbers = sum(value.numel() for value in TextEncoder(*shape).state_dict().values())
    if numbers > sum(value.numel() for value in text.values()):  # memory is taken for what the file holds alone
        raise ValueError(f"{path}: has no whole text encoder ({depth} blocks of width {shape[1]} have {numbers:,} "
                         "numbers); name CLIP's weights")
    encoder = TextEncoder(*shape)
    load_weights(encoder, text, path, skip=())
    if behind.shape[-1] != before.shape[-1] or len(before) + LEARNED + len(behind) > len(places):
        raise ValueError(f"{path}: its words do not fit its text encoder; name CLIP's weights")
    return Prompts(encoder, before.float(), behind.float(), num_class)


def _words(state: Mapping[str, Tensor], name: str, ndim: int, path: str | Path) -> Tensor:
    """A table of numbers among a file's weights, none of whose sides is 0."""
    table = state.get(name)
    if not isinstance(table, Tensor) or table.ndim != ndim or not table.numel() or not table.is_floating_point():
        raise ValueError(f"{path}: has no whole text encoder ({name} is missing or of another shape); name CLIP's "
                         "weights")
    return table


def order_texts(learned: Mapping, pid_names: Sequence[str], path: str | Path) -> Tensor:
    """[K, D] features of the texts of the identities of a training, from what `processor.prompts` wrote.

    Raises:
        ValueError: it is no such file, or an identity has no text in it.
    """
    feats, names = learned.get("text_feats"), learned.get("pid_names")
    if not (isinstance(feats, Tensor) and feats.ndim == 2 and feats.is_floating_point() and isinstance(names, list)
            and len(names) == len(feats) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"MODEL.PROMPTS={path}: is no file of tools/learn_prompts.py")
    rows = {name: row for row, name in enumerate(names)}
    missing = [name for name in pid_names if name not in rows]
    if missing:
        raise ValueError(f"MODEL.PROMPTS={path}: {len(missing)} identities have no text in it, {missing[0]} among "
                         "them; run tools/learn_prompts.py with the sets that are trained on")
    return feats[[rows[name] for name in pid_names]].float()
