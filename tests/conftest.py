"""A tiny demo set in NAIC's layout, and a config that trains on it in seconds."""
from __future__ import annotations

import importlib.util
import logging
import shutil
from pathlib import Path

import pytest
import torch
from galleries import gallery, gallery_engine, gallery_place  # noqa: F401
from trainings import TINY_BACKBONE, add_tiny_backbone

from configs import load_cfg
from configs.defaults import get_cfg_defaults
from datasets.demo.plan import Sizes
from datasets.demo.synthetic import make_demo_data
from datasets.sets.domains import split_domains
from datasets.validation.cut import SplitRequest
from model.backbones import BACKBONES, build_backbone
from processor.import_weights import import_weights
from processor.prepare import make_validation
from tools.campaigns.tool_server import draw_no_curves

TINY = Sizes(ids=6, images=5, singles=1, shared=1, query_ids=6, query_images=2, gallery_images=4, distractors=3,
             distractor_images=2, cameras=3, height=32, width=16)


# The files whose tests take longest begin first, so that no process is left alone with one of them at the end.
LONGEST_FIRST = (
    "test_processor_pipeline", "test_tools_pseudo", "test_processor_distributed", "test_retrieval_reranking",
    "test_model_backbones", "test_processor_resume", "test_retrieval_search", "test_processor_tuning",
    "test_processor_stages", "test_utils_dist", "test_processor_uda", "test_processor_export",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: a second thread would only wait, for long where the cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_log():
    """A log that a test, or a fixture of a whole file, opens by setup_logger is closed after each test.

    The next would log into its streams, and at its level.
    """
    yield
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in root.handlers[:]:
        if getattr(handler, "_of_setup_logger", False):
            root.removeHandler(handler)
            handler.close()


@pytest.fixture(scope="session", autouse=True)
def _no_curves():
    with pytest.MonkeyPatch.context() as patch:
        draw_no_curves(patch.setattr)
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A folder with MyDataSet/ in it and, in derived/, its domain lists and a validation split."""
    root = tmp_path_factory.mktemp("tiny")
    test = make_demo_data(root, seed=3, sizes=TINY, workers=1, progress=False) / "image_B_v1_1"
    split_domains(test / "query", test / "gallery", root / "derived", workers=1)
    cfg = load_cfg(None, ["DATASETS.NAMES", "naic", "DATASETS.ROOT_DIR", str(root)])
    make_validation(cfg, SplitRequest(2, 0, green=0.5, queries=1, seed=0, compare=True), split_of(root), workers=1)
    return root


def split_of(tiny_data: Path) -> Path:
    """tiny_data's validation split: two identities, without which an epoch has 7 batches."""
    return tiny_data / "derived" / "validation.json"


@pytest.fixture
def tiny_opts(tiny_data, tmp_path) -> list[str]:
    """KEY VALUE pairs for load_cfg or a tool: a small net, 32 x 16 pixels, a few steps."""
    return tiny_options(tiny_data, tmp_path / "model")


def tiny_options(tiny_data: Path, output: Path) -> list[str]:
    options = {
        "MODEL.NAME": "resnet18_ibn_b_w32", "MODEL.PRETRAIN_CHOICE": "none", "MODEL.DEVICE": "cpu",
        "MODEL.POOLING_METHOD": "GeM", "MODEL.ID_LOSS_TYPE": "arcface", "MODEL.METRIC_LOSS_TYPE": "triplet_center",
        "MODEL.IF_WITH_CENTER": "yes", "MODEL.WEIGHTED_TRIPLET": "True", "MODEL.NO_MARGIN": "True",
        "INPUT.SIZE_TRAIN": "[32, 16]", "INPUT.SIZE_TEST": "[32, 16]", "INPUT.PADDING": "2",
        "DATASETS.NAMES": "naic", "DATASETS.ROOT_DIR": str(tiny_data), "DATASETS.HARD_AUG": "True",
        "DATASETS.DERIVED_DIR": str(tiny_data / "derived"),
        "DATALOADER.SAMPLER": "softmax_triplet", "DATALOADER.NUM_INSTANCE": "2", "DATALOADER.NUM_WORKERS": "0",
        "SOLVER.OPTIMIZER_NAME": "Ranger", "SOLVER.MAX_EPOCHS": "4", "SOLVER.WARMUP_EPOCHS": "1", "SOLVER.STEPS": "[3]",
        "SOLVER.IMS_PER_BATCH": "16", "SOLVER.CHECKPOINT_PERIOD": "2", "SOLVER.EVAL_PERIOD": "0",
        "SOLVER.LOG_PERIOD": "2", "SOLVER.FP16": "False",
        "TEST.RE_RANKING": "True", "TEST.RE_RANKING_PARAMETER": "[6, 2, 0.5]", "TEST.FLIP_FEATS": "on",
        "TEST.TOP_K": "10", "TEST.IMS_PER_BATCH": "7",
        "OUTPUT_DIR": str(output),
    }
    return [word for pair in options.items() for word in pair]


def quick_options(tiny_data: Path, output: Path, *changes) -> list[str]:
    """tiny_options with a backbone of two convolutions: 8 batches an epoch, each evaluated and kept, EMA."""
    options = {"MODEL.NAME": TINY_BACKBONE, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.EVAL_PERIOD": 1,
               "SOLVER.LOG_PERIOD": 3, "SOLVER.EMA_DECAY": 0.9, **dict(zip(changes[::2], changes[1::2], strict=True))}
    return [*tiny_options(tiny_data, output), *(str(word) for pair in options.items() for word in pair)]


@pytest.fixture(scope="module")
def tiny_backbone():
    """TINY_BACKBONE can be named while a module's tests run."""
    add_tiny_backbone(BACKBONES)
    yield
    del BACKBONES[TINY_BACKBONE]


@pytest.fixture(scope="session")
def imported(tmp_path_factory):
    """A folder with a small backbone's published file, file.pth, and the model folder of it, model."""
    folder = tmp_path_factory.mktemp("imported")
    torch.save(build_backbone("resnet18_ibn_b_w32").state_dict(), folder / "file.pth")
    import_weights(folder / "file.pth", folder / "model", opts=["INPUT.SIZE_TEST", "[64, 32]"])
    return folder


def model_config(**keys):
    """The defaults with the small net, no pretraining and both kinds of loss; NODE__KEY=value changes one key."""
    cfg = get_cfg_defaults()
    keys = {"MODEL__NAME": "resnet18_ibn_b_w32", "MODEL__PRETRAIN_CHOICE": "none",
            "DATALOADER__SAMPLER": "softmax_triplet", **keys}
    for key, value in keys.items():
        node, name = key.split("__")
        assert name in cfg[node], key
        cfg[node][name] = value
    cfg.freeze()
    return cfg


def load_golden_fill():
    """tests/golden/fill.py as a module: the weights and inputs of the golden backbones."""
    path = Path(__file__).parent / "golden" / "fill.py"
    spec = importlib.util.spec_from_file_location("golden_fill", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; without one, or without playwright, its tests are skipped."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()
