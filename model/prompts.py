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
        before = state["prompt_learner.token_prefix"][0]
        behind = state["prompt_learner.token_suffix"][0, : len(BEHIND)]
        text = {key.removeprefix("text_encoder."): value for key, value in state.items()
                if key.startswith("text_encoder.")}
    elif "token_embedding.weight" in state:
        before, behind = (state["token_embedding.weight"][list(ids)] for ids in (BEFORE, BEHIND))
        text = {key: value for key, value in state.items() if key.startswith(_TEXT_NAMES)}
    else:
        raise ValueError(f"{path}: has no text encoder (neither token_embedding.weight nor prompt_learner.*), and "
                         "prompts are learned through one; name CLIP's weights, or train the image encoder without "
                         "MODEL.PROMPTS")
    width, feat_dim = text["text_projection"].shape if "text_projection" in text else (before.shape[1], 1)
    depth = len({key.split(".")[2] for key in text if key.startswith("transformer.resblocks.")})
    encoder = TextEncoder(len(text.get("positional_embedding", ())), width, depth, feat_dim)
    load_weights(encoder, text, path, skip=())
    return Prompts(encoder, before.float(), behind.float(), num_class)


def order_texts(learned: Mapping, pid_names: Sequence[str], path: str | Path) -> Tensor:
    """[K, D] features of the texts of the identities of a training, from what `processor.prompts` wrote.

    Raises:
        ValueError: it is no such file, or an identity has no text in it.
    """
    if not {"text_feats", "pid_names"} <= set(learned):
        raise ValueError(f"MODEL.PROMPTS={path}: is no file of tools/learn_prompts.py")
    rows = {name: row for row, name in enumerate(learned["pid_names"])}
    missing = [name for name in pid_names if name not in rows]
    if missing:
        raise ValueError(f"MODEL.PROMPTS={path}: {len(missing)} identities have no text in it, {missing[0]} among "
                         "them; run tools/learn_prompts.py with the sets that are trained on")
    return learned["text_feats"][[rows[name] for name in pid_names]].float()
