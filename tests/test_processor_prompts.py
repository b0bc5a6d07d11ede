"""CLIP-ReID's two stages: texts of identities, and a training with them; the encoders' weights are random."""
import pytest
import torch
from conftest import quick_options
from torch import nn

from configs import load_cfg
from loss.prompt_loss import TextLoss, contrastive
from model.backbones import Backbone
from model.prompts import BEFORE, BEHIND, LEARNED, TextEncoder, order_texts, read_prompts
from processor.prompts import learn_prompts
from processor.training.build import build
from processor.training.step import forward_backward
from utils.checkpoint import read_checkpoint
from utils.meter import PhaseTimer

pytestmark = pytest.mark.usefixtures("tiny_backbone")
WIDTH, DIM, WORDS = 16, 4, 49408


@pytest.fixture(scope="module")
def clip_state():
    """What a file of CLIP has of the text encoder, two layers of it."""
    torch.manual_seed(0)
    encoder = TextEncoder(77, WIDTH, 2, DIM)
    nn.init.normal_(encoder.positional_embedding, std=0.5)
    return {"token_embedding.weight": torch.randn(WORDS, WIDTH), "logit_scale": torch.tensor(4.6),
            "visual.proj": torch.randn(3, 3), **encoder.state_dict()}


@pytest.fixture
def weights(clip_state, tmp_path):
    path = tmp_path / "clip.pth"
    torch.save(clip_state, path)
    return path


@pytest.fixture
def cfg(tiny_data, tmp_path, monkeypatch):
    """A training with a backbone whose last features are taken for a place among texts."""
    monkeypatch.setattr(Backbone, "text_dim", DIM)
    return load_cfg(None, quick_options(tiny_data, tmp_path / "run", "SOLVER.EVAL_PERIOD", 0))


def test_a_text_is_what_the_encoder_makes_of_the_whole_padded_prompt(clip_state, weights):
    prompts = read_prompts(weights, 3)
    ids = [*BEFORE, *[0] * LEARNED, *BEHIND, *[0] * (77 - len(BEFORE) - LEARNED - len(BEHIND))]
    x = clip_state["token_embedding.weight"][ids].expand(2, -1, -1).clone()
    x[:, len(BEFORE):len(BEFORE) + LEARNED] = prompts.cls_ctx[[2, 0]].detach()
    x = x + clip_state["positional_embedding"]
    mask = torch.full((77, 77), -torch.inf).triu(1)
    for block in prompts.encoder.transformer.resblocks:
        normed = block.ln_1(x)
        x = x + block.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        x = x + block.mlp(block.ln_2(x))
    x = prompts.encoder.ln_final(x)[:, ids.index(BEHIND[-1])] @ clip_state["text_projection"]
    torch.testing.assert_close(prompts(torch.tensor([2, 0])), x, rtol=1e-4, atol=1e-5)
    assert [name for name, p in prompts.named_parameters() if p.requires_grad] == ["cls_ctx"]


def test_a_checkpoint_of_clip_reid_gives_the_same_texts(clip_state, weights, tmp_path):
    words = clip_state["token_embedding.weight"]
    state = {f"text_encoder.{key}": value for key, value in TextEncoder(77, WIDTH, 2, DIM).state_dict().items()}
    state = {key: clip_state[key.removeprefix("text_encoder.")] for key in state}
    state |= {"prompt_learner.token_prefix": words[list(BEFORE)][None],
              "prompt_learner.token_suffix": torch.cat([words[list(BEHIND)], words[:1].expand(65, -1)])[None],
              "prompt_learner.cls_ctx": torch.randn(9, 4, WIDTH), "classifier.weight": torch.randn(9, 5)}
    torch.save(state, tmp_path / "reid.pth")
    first, second = read_prompts(weights, 3), read_prompts(tmp_path / "reid.pth", 3)
    second.load_state_dict({"cls_ctx": first.cls_ctx.detach()}, strict=False)
    pids = torch.arange(3)
    assert torch.equal(first(pids), second(pids))


def test_a_file_without_a_text_encoder_is_refused_with_the_reason(tmp_path):
    torch.save({"visual.proj": torch.zeros(2)}, tmp_path / "image.pth")
    with pytest.raises(ValueError, match=r"image\.pth: has no text encoder .*learned through one; name CLIP's weights"):
        read_prompts(tmp_path / "image.pth", 3)


@pytest.mark.parametrize(("change", "reason"), [
    ({"token_embedding.weight": torch.zeros(9, WIDTH)}, "its vocabulary has 9 words"),
    ({"token_embedding.weight": torch.zeros(WORDS)}, r"token_embedding\.weight is missing or of another shape"),
    ({"token_embedding.weight": torch.zeros(WORDS, 4)}, "does not fit the model"),
    ({"ln_final.bias": torch.zeros(WIDTH, 2)}, "does not fit the model"),
    ({"text_projection": torch.zeros(3)}, "text_projection is missing or of another shape"),
    ({"text_projection": torch.zeros(200_000, 1), "token_embedding.weight": torch.zeros(1, 1).expand(WORDS, 200_000)},
     "no whole text encoder .* of width 200000"),
    ({"positional_embedding": torch.zeros(4, WIDTH)}, "its words do not fit its text encoder"),
    ({f"transformer.resblocks.{number}.x": torch.zeros(1) for number in range(60)}, "has 60 blocks"),
])
def test_a_text_encoder_that_is_none_is_refused_and_takes_no_memory(clip_state, tmp_path, monkeypatch, change, reason):
    monkeypatch.setattr("model.prompts.read_checkpoint", lambda _: {**clip_state, **change})
    with pytest.raises(ValueError, match=reason):
        read_prompts(tmp_path / "clip.pth", 3)


@pytest.mark.parametrize("change", [{"text_feats": torch.zeros(1, 4)}, {"text_feats": torch.zeros(3)},
                                    {"text_feats": [1]}, {"pid_names": 3}, {"pid_names": [[1], "b", "c"]},
                                    {"text_feats": torch.zeros(3, 4, dtype=torch.int64)}])
def test_texts_that_are_none_are_refused(change):
    learned = {"text_feats": torch.eye(3, 4), "pid_names": ["a", "b", "c"]}
    assert torch.equal(order_texts(learned, ["c", "a"], "x"), torch.eye(3, 4)[[2, 0]])
    with pytest.raises(ValueError, match="is no file of tools/learn_prompts"):
        order_texts({**learned, **change}, ["a"], "x")


def test_the_contrastive_loss_is_the_formulas():
    torch.manual_seed(0)
    feats, others = torch.randn(3, 4), torch.randn(3, 4)
    pids = torch.tensor([5, 7, 5])
    want = 0.0
    for i in range(3):
        shares = torch.softmax(torch.stack([feats[i] @ other for other in others]), 0)
        mine = [-shares[j].log() for j in range(3) if pids[j] == pids[i]]
        want += sum(mine) / len(mine) / 3
    torch.testing.assert_close(contrastive(feats, others, pids, pids), want)


def test_texts_are_learned_and_a_training_goes_by_them(cfg, weights, tmp_path):
    path = tmp_path / "prompts.pth"
    chance = learn_prompts(cfg, weights, path, epochs=1, lr=0.0)
    assert learn_prompts(cfg, weights, path, epochs=12, lr=0.1) > chance
    learned = read_checkpoint(path)
    assert learned["text_feats"].shape == (len(learned["pid_names"]), DIM)
    cfg.defrost()
    cfg.MODEL.PROMPTS, cfg.MODEL.I2T_LOSS_WEIGHT = str(path), 0.5
    run = build(cfg)
    values = forward_backward(run, next(iter(run.loaders.train)), 1, 1, PhaseTimer())
    assert "i2t" in str(values)
    assert torch.equal(run.criterion.texts.text_feats, learned["text_feats"])
    assert not any("text" in key for key in run.criterion.state_dict())


def test_texts_of_other_people_or_of_another_clip_are_refused(cfg, tmp_path, monkeypatch):
    names = build(cfg).loaders.data.pid_names
    path = tmp_path / "prompts.pth"
    cfg.defrost()
    cfg.MODEL.PROMPTS = str(path)
    torch.save({"text_feats": torch.zeros(1, DIM), "pid_names": names[:1]}, path)
    with pytest.raises(ValueError, match=r"identities have no text in it, .* among them; run tools/learn_prompts"):
        build(cfg)
    torch.save({"text_feats": torch.zeros(len(names), DIM + 1), "pid_names": names}, path)
    with pytest.raises(ValueError, match=r"its texts have 5 numbers, and the images of .* have 4"):
        build(cfg)


def test_a_text_loss_is_a_cross_entropy_over_the_last_numbers():
    feat, texts, pids = torch.randn(2, 6), torch.randn(3, 4), torch.tensor([2, 0])
    want = -sum(torch.log_softmax(texts @ feat[i, 2:], 0)[pids[i]] for i in range(2)) / 2
    torch.testing.assert_close(TextLoss(texts)(feat, pids), want)
