"""Every key of the config: its default value, the rule that its values keep, and what it means.

`_C.SECTION.KEY = default, rule` below a comment. The names and the default values are those of reid-strong-baseline ->
DMT -> NAIC-ReID, so that their YAML files load here; a default that could not stay is in the comment. Keys that were
strings 'on' / 'off' or 'yes' / 'no' are booleans now; the old spellings are still understood in files and on the
command line. `configs/model_keys.py` has those of MODEL, `configs/rules.py` the kinds of rule, `configs/checks.py`
what goes across keys.

Names of backbones, optimisers and data sets are checked by their builders, which list the choices.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from yacs.config import CfgNode

from configs.model_keys import MODEL
from configs.rules import (
    Bool,
    Choice,
    Float,
    Int,
    ListOf,
    NamedFolders,
    NamedShare,
    Obsolete,
    OrAuto,
    Row,
    Str,
)

SHARE = Float(0, 1)
SIZE = Row({"height": Int(1), "width": Int(1)})
K1_K2_LAMBDA = Row({"k1": Int(1), "k2": Int(1), "lambda": SHARE})
NO_RANGE_LOSS = "belonged to a range loss that no version had"

_C = SimpleNamespace(MODEL=MODEL)

# ---------------------------------------------------------------- INPUT
_C.INPUT = SimpleNamespace()
# Height and width of a training image, pixels.
_C.INPUT.SIZE_TRAIN = [384, 128], SIZE
# Height and width of a test image, pixels.
_C.INPUT.SIZE_TEST = [384, 128], SIZE
# Probability of the horizontal flip.
_C.INPUT.PROB = 0.5, SHARE
# Probability of random erasing (area 0.02-0.4, aspect 0.3-3.3, filled with PIXEL_MEAN).
_C.INPUT.RE_PROB = 0.5, SHARE
# Mean of the R, G and B channels, images scaled to 0..1. Of MODEL.NAME timm:... the network's own, if none is set.
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406], Row(dict.fromkeys("RGB", SHARE))
# Standard deviation of the R, G and B channels, images scaled to 0..1; likewise.
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225], Row(dict.fromkeys("RGB", Float(above=0)))
# Zero padding on every side before the random crop back to SIZE_TRAIN, pixels.
_C.INPUT.PADDING = 10, Int(0)
# Probability of a patch of another image of the batch pasted in (OSNet's; area 0.01-0.5). With several processes the
# other image is of the same process's share.
_C.INPUT.RANDOM_PATCH_PROB = 0.0, SHARE
# Probability of AutoAugment's ImageNet policy.
_C.INPUT.AUTOAUG_PROB = 0.0, SHARE
# Probability of AugMix (three chains of one to three operations, severity 1).
_C.INPUT.AUGMIX_PROB = 0.0, SHARE
# Probability that a rectangle turns to grey (area 0.02-0.4, aspect 0.3-3.3).
_C.INPUT.GRAYSCALE_PATCH_PROB = 0.0, SHARE
# Probability that the whole image turns to grey.
_C.INPUT.GRAYSCALE_PROB = 0.0, SHARE

# ---------------------------------------------------------------- DATASETS
_C.DATASETS = SimpleNamespace()
# Data sets to train on, names of datasets.registry.DATASETS joined with +: naic | market1501 | dukemtmc | msmt17 |
# cuhk03 | cuhk03_labeled | veri | vehicleid (its test list of 800 vehicles; others: vehicleid_1600 ...) |
# tree:FOLDER (a folder for each identity) | csv:FILE (path,pid,camid,split).
_C.DATASETS.NAMES = "market1501", Str()
# Data sets to test on, likewise; "" = those of NAMES that have a test part.
_C.DATASETS.TEST_NAMES = "", Str(empty=True)
# A validation split (tools/split_validation.py): its identities are left out of training, and evaluation, during
# training and in tools/test.py, measures on them instead of on a test set. "" = none.
_C.DATASETS.VALIDATION = "", Str(empty=True)
# Folder that holds the folders of the data sets (NAIC: that with MyDataSet/ in it), or the folder of a single set.
_C.DATASETS.ROOT_DIR = "../data", Str()
# Sets that lie elsewhere, such as ['market1501=/data/a', 'people=/data/b']: as ROOT_DIR, for the set of that name.
_C.DATASETS.ROOTS = [], NamedFolders()
_C.DATASETS.ROOT_TRAIN_DIR = "../data", Obsolete(Str(empty=True), "DATASETS.ROOT_DIR is the folder of all sets")
_C.DATASETS.ROOT_VAL_DIR = "../data", Obsolete(Str(empty=True), "DATASETS.ROOT_DIR is the folder of all sets")
# True: colour jitter (.5, .5, .5, .2) and scale .9-1.1 as well.
_C.DATASETS.HARD_AUG = False, Bool()
# True: every training identity appears a second time as another, whose channels are permuted (twice the classes).
_C.DATASETS.CHANNEL_SHUFFLE = False, Bool()
# True: train on the pseudo-labelled set unlabel/ (images/ and label.txt; see tools/pseudo_label.py), too.
_C.DATASETS.USE_UNLABEL = False, Bool()
# Folder of the pseudo-labelled set. "" = unlabel/ in MyDataSet/ (without NAIC: in ROOT_DIR), or if there is none,
# in DERIVED_DIR.
_C.DATASETS.UNLABEL_DIR = "", Str(empty=True)
# NAIC: which training sets to use. [] = all four, and all must be there.
_C.DATASETS.TRAIN_SETS = [], ListOf(Choice("2019_cs", "2019_fs", "2020_cs", "2020_fs"), unique=True)
# NAIC: the test folder's name inside MyDataSet/: query/, gallery/ and, if the truth is known, ground_truth.json.
_C.DATASETS.TEST_DIR = "image_B_v1_1", Str()
# Folder of what is derived from the data: NAIC's domain lists query_green.txt ... and cleaned training lists, and the
# pseudo-labelled set unlabel/; looked at after the folders of the data. "" = the folder `derived` beside OUTPUT_DIR, as
# run.sh puts them.
_C.DATASETS.DERIVED_DIR = "", Str(empty=True)
# Folder made by tools/pack.py from these images, as files or decoded at the sizes of INPUT: images are read from there.
# "" = from the files. The batches are the same.
_C.DATASETS.PACKED = "", Str(empty=True)

# ---------------------------------------------------------------- DATALOADER
_C.DATALOADER = SimpleNamespace()
# Processes that read and decode images; 0 = the main process. Results do not depend on it.
_C.DATALOADER.NUM_WORKERS = 8, Int(0)
# softmax: shuffled batches, ID loss only | triplet: P x K batches, metric loss only | softmax_triplet: P x K, both.
_C.DATALOADER.SAMPLER = "softmax", Choice("softmax", "triplet", "softmax_triplet")
# K, images of an identity in a P x K batch, which needs 2 or more.
_C.DATALOADER.NUM_INSTANCE = 16, Int(1)
_C.DATALOADER.REMOVE_TAIL = 0, Obsolete(Int(), "no recipe leaves out identities with few images")
# A training image that cannot be read or decoded: error: stop | skip: name and count it in the log, and take another
# image of its identity, a function of SEED, epoch and position. A wrong line of a training list, or a line whose image
# is missing: error: stop | skip: name it and leave it out. A test always stops.
_C.DATALOADER.ON_BAD_IMAGE = "error", Choice("error", "skip")
# True: a P x K batch draws its identities from all training sets alike, or by SET_SHARES; False: by their size.
_C.DATALOADER.BALANCE_SETS = False, Bool()
# A share for each training set, such as ['train_2019_cs:1', 'train_2020_fs:2.5'], in proportion. [] = all alike.
_C.DATALOADER.SET_SHARES = [], ListOf(NamedShare(), unique=True)

# ---------------------------------------------------------------- SOLVER
_C.SOLVER = SimpleNamespace()
# Optimiser, a name of solver.make_optimizer.OPTIMIZERS: SGD | Adam | AdamW | Ranger.
_C.SOLVER.OPTIMIZER_NAME = "Adam", Str()
# Epochs to train, counted from 1.
_C.SOLVER.MAX_EPOCHS = 100, Int(1)
# Base learning rate.
_C.SOLVER.BASE_LR = 3e-4, Float(above=0)
# True: the classifier learns at twice the base lr.
_C.SOLVER.LARGE_FC_LR = False, Bool()
# Factor on the lr of biases.
_C.SOLVER.BIAS_LR_FACTOR = 1.0, Float(0)
# Factor on the lr of the backbone (weights and biases).
_C.SOLVER.BACKBONE_LR_FACTOR = 1.0, Float(0)
# Factor on the lr from each block of the backbone to the one before it, such as 0.75 for transformers; 1 = none.
_C.SOLVER.LAYER_DECAY = 1.0, Float(above=0, high=1)
# Momentum of SGD.
_C.SOLVER.MOMENTUM = 0.9, SHARE
# True: Nesterov momentum in SGD.
_C.SOLVER.NESTEROV = False, Bool()
# True: Ranger subtracts each weight gradient's mean over all but its first dimension (gradient centralisation).
_C.SOLVER.GRADIENT_CENTRALIZATION = False, Bool()
# Margin of the triplet loss if MODEL.NO_MARGIN is False.
_C.SOLVER.MARGIN = 0.3, Float(0)
# True: the triplet loss is over features of length 1.
_C.SOLVER.TRP_L2 = False, Bool()
_C.SOLVER.CLUSTER_MARGIN = 0.3, Obsolete(Float(), "belonged to a cluster loss that no version had")
# Learning rate of the class centres (they have an SGD without momentum).
_C.SOLVER.CENTER_LR = 0.5, Float(0)
# Weight of the center loss in the sum; the gradient of the centres is not weighted by it.
_C.SOLVER.CENTER_LOSS_WEIGHT = 0.0005, Float(0)
_C.SOLVER.RANGE_K = 2, Obsolete(Int(), NO_RANGE_LOSS)
_C.SOLVER.RANGE_MARGIN = 0.3, Obsolete(Float(), NO_RANGE_LOSS)
_C.SOLVER.RANGE_ALPHA = 0, Obsolete(Float(), NO_RANGE_LOSS)
_C.SOLVER.RANGE_BETA = 1, Obsolete(Float(), NO_RANGE_LOSS)
_C.SOLVER.RANGE_LOSS_WEIGHT = 1, Obsolete(Float(), NO_RANGE_LOSS)
# Weight decay of weights.
_C.SOLVER.WEIGHT_DECAY = 0.0005, Float(0)
# Weight decay of biases.
_C.SOLVER.WEIGHT_DECAY_BIAS = 0.0005, Float(0)
# multistep: times GAMMA after each epoch of STEPS | cosine: from BASE_LR to MIN_LR over the epochs after warm-up.
_C.SOLVER.LR_SCHEDULER = "multistep", Choice("multistep", "cosine")
# Lowest lr of the cosine schedule, for a parameter at the base lr; the others in proportion.
_C.SOLVER.MIN_LR = 0.0, Float(0)
# Factor on the lr after each epoch of STEPS.
_C.SOLVER.GAMMA = 0.1, Float(above=0)
# Epochs after which the lr is multiplied by GAMMA.
_C.SOLVER.STEPS = [40, 70], ListOf(Int(1), increasing=True)
# First epoch's factor on the lr.
_C.SOLVER.WARMUP_FACTOR = 0.01, SHARE
# Length of the warm-up, epochs; 0 = none. With MODEL.NAME transformer it is 5, if none is set.
_C.SOLVER.WARMUP_EPOCHS = 10, Int(0)
_C.SOLVER.WARMUP_ITERS = 10, Obsolete(Int(0), "CLIP-ReID's word for SOLVER.WARMUP_EPOCHS; it counts epochs, too")
_C.SOLVER.STAGE1 = "", Obsolete(Str(empty=True), "CLIP-ReID's first stage is tools/learn_prompts.py, with its settings")
# linear: from WARMUP_FACTOR to 1 | constant: WARMUP_FACTOR until the warm-up ends | cosine: the whole schedule of
# TransReID and its descendants, of which LR_SCHEDULER, WARMUP_FACTOR, MIN_LR and STEPS are no part: from 0.01 BASE_LR
# up, then half a cosine over MAX_EPOCHS down to 0.002 BASE_LR. It is that of NAME transformer, whatever is here.
_C.SOLVER.WARMUP_METHOD = "linear", Choice("linear", "constant", "cosine")
# Margin m of arcface (radians), cosface / amsoftmax (cosine) and circle (relaxation).
_C.SOLVER.COSINE_MARGIN = 0.5, Float(0)
# Scale s of arcface, cosface / amsoftmax and circle.
_C.SOLVER.COSINE_SCALE = 30.0, Float(above=0)
# Margin m of the pairwise losses, in units of the cosine.
_C.SOLVER.PAIR_MARGIN = 0.35, Float(0)
# Scale gamma of the pairwise losses.
_C.SOLVER.PAIR_SCALE = 64.0, Float(above=0)
# Teacher that is learned from, beside the other losses: a checkpoint, a model folder, an .onnx or an .xml. "" = none.
_C.SOLVER.DISTILL_FROM = "", Str(empty=True)
# Weight of what is learned from it: 25 times the distances and 50 times the angles of a batch's features (RKD), and the
# logits, if its classes are these.
_C.SOLVER.DISTILL_WEIGHT = 1.0, Float(0)
# Temperature of these logits.
_C.SOLVER.DISTILL_TEMPERATURE = 4.0, Float(above=0)
# Write a checkpoint NAME_EPOCH.pth every n epochs (and after the last).
_C.SOLVER.CHECKPOINT_PERIOD = 10, Int(1)
# Of these, keep the newest n; 0 = all. best.pth and latest.pth stay anyway.
_C.SOLVER.CHECKPOINT_KEEP = 0, Int(0)
# Write latest.pth every n seconds, in the middle of an epoch, too; 0 = never there, but before an evaluation.
_C.SOLVER.CHECKPOINT_SECONDS = 600.0, Float(0)
# Decides on the split of DATASETS.VALIDATION which epoch is best.pth; without a split there is none.
_C.SOLVER.BEST_METRIC = "mAP", Choice("mAP", "rank1", "mINP", "naic_score")
# Write a log line every n iterations.
_C.SOLVER.LOG_PERIOD = 100, Int(1)
# Evaluate every n epochs, on DATASETS.VALIDATION or else on the test set, if it has ground truth; 0 = never.
_C.SOLVER.EVAL_PERIOD = 10, Int(0)
# True: mixed precision, of the type AMP_DTYPE; False: float32.
_C.SOLVER.FP16 = True, Bool()
# Who does it: auto and torch are torch.amp | apex is NVIDIA Apex's amp O1, if it is still installed.
_C.SOLVER.AMP_BACKEND = "auto", Choice("auto", "torch", "apex")
# Type of the forward pass: auto is float16 with loss scaling on CUDA, bfloat16 in training on a CPU that has it, else
# float32.
_C.SOLVER.AMP_DTYPE = "auto", Choice("auto", "float16", "bfloat16")
# Images in a training batch, over all devices and all micro-batches.
_C.SOLVER.IMS_PER_BATCH = 64, Int(1)
# A batch is computed in n micro-batches, one after the other, and makes one step: less memory. Metric losses see the
# pairs of a micro-batch only.
_C.SOLVER.ACCUMULATION_STEPS = 1, Int(1)
# Largest norm of the model's gradient, all parameters together; a longer one is scaled down to it. 0 = no limit.
_C.SOLVER.CLIP_GRAD_NORM = 0.0, Float(0)
# Decay of the exponential moving average of the weights, such as 0.999, which is then what is tested; 0 = none.
_C.SOLVER.EMA_DECAY = 0.0, SHARE
# Steps without a finite loss or gradient are skipped; so many in a row (or a whole epoch of them) end the training.
_C.SOLVER.MAX_SKIPPED_STEPS = 10, Int(1)
# Of several processes: end with an error if one gives no sign of life for so many seconds (it was stopped, or the
# network is down; one that dies is noticed at once).
_C.SOLVER.DIST_TIMEOUT = 600.0, Float(5)
# Seed of every random draw.
_C.SOLVER.SEED = 1234, Int(0, 2**32 - 1)
# True: the same bits at every run on CUDA, too (slower); the CPU's are the same anyway.
_C.SOLVER.DETERMINISTIC = False, Bool()

# ---------------------------------------------------------------- TEST
_C.TEST = SimpleNamespace()
# Images in a batch at inference.
_C.TEST.IMS_PER_BATCH = 128, Int(1)
# True: k-reciprocal re-ranking of the distances.
_C.TEST.RE_RANKING = False, Bool()
# Checkpoint to test.
_C.TEST.WEIGHT = "", Str(empty=True)
# Embedding taken before or after the BNNeck.
_C.TEST.NECK_FEAT = "after", Choice("before", "after")
# True: L2-normalise the features before the distance.
_C.TEST.FEAT_NORM = True, Bool()
# Distance of two features without re-ranking.
_C.TEST.DISTANCE = "euclidean", Choice("euclidean", "cosine")
_C.TEST.DIST_MAT = "dist_mat.npy", Obsolete(Str(empty=True), "see tools/test.py --save-distmat")
# True: add the features of the mirrored image before averaging.
_C.TEST.FLIP_FEATS = False, Bool()
_C.TEST.EVAL = False, Obsolete(Bool(), "metrics are computed wherever there is ground truth")
# k1, k2 and lambda of re-ranking; lambda is the share of the original distance.
_C.TEST.RE_RANKING_PARAMETER = [30, 2, 0.8], K1_K2_LAMBDA
# Average query expansion: the nearest n gallery features are averaged into a query's; 0 = none. FEAT_NORM must be True.
_C.TEST.QUERY_EXPANSION = 0, Int(0)
# Database augmentation, before it: the nearest n others are averaged into each gallery feature; 0 = none. Likewise.
_C.TEST.DATABASE_AUGMENTATION = 0, Int(0)
# Exponent of both averages' weights cos^alpha, in which a negative cosine weighs nothing; 0 = plain mean.
_C.TEST.EXPANSION_ALPHA = 0.0, Float(0)
# Precision of re-ranking's candidate search: auto is the fastest of the device. Every candidate is computed
# again in float32 and every row is proven, so the result is the same to the bit.
_C.TEST.SEARCH_PRECISION = "auto", Choice("auto", "float32", "tf32", "bf16")
# Memory that ranking may use above the features, MiB; 0 = four fifths of what is free. The result is the same.
_C.TEST.MEMORY_BUDGET = 0, Int(0)
# Length of a query's list in the submission, and the k of mAP@k.
_C.TEST.TOP_K = 200, Int(1)
# auto: the protocol of each test set | True: gallery images of the query's pid and camera are left out of the
# metrics (that of Market-1501 and its like) | False: they count (NAIC's). Read only if there is ground truth.
_C.TEST.DROP_SAME_CAMERA = "auto", OrAuto(Bool())
# True: a model with part heads is tested with them, too: their distance is added to the global one.
_C.TEST.USE_LOCAL = True, Bool()
# Weight of the part heads' distance (the mean over its branches); the global distance has 1.
_C.TEST.LOCAL_WEIGHT = 1.0, Float(0)
# True: the model has the branch `local` (convolution, L2 norm over channels, GeM), and it is what stands for the part
# heads in a test. Read in training, too: a branch that is tested must have been trained.
_C.TEST.PCB_GLOBAL_FEAT_ENSEMBLE = False, Bool()
# True: the merged parts (1536-d) stand for the part heads in a test; False: the six parts, a distance each.
_C.TEST.USE_PCB_MERGE_FEAT = True, Bool()
# The six parts in a test: plain (as they were trained) | weighted (times their gates; the lineage's).
_C.TEST.PCB_PART_FEAT = "plain", Choice("plain", "weighted")

# ---------------------------------------------------------------- UDA
_C.UDA = SimpleNamespace()
# How unlabelled images get identities: nearest_query (the lineage's: a gallery image joins the identity of its nearest
# query, if that is nearer than the threshold) | dbscan | agglomerative (average linkage). The last two need no
# queries and cluster all images by their k-reciprocal Jaccard distance.
_C.UDA.METHOD = "nearest_query", Choice("nearest_query", "dbscan", "agglomerative")
# Distance of nearest_query: angle (radians, 0..pi; the lineage's) | cosine (1 - cos, 0..2) | euclidean |
# re_ranked (0..1).
_C.UDA.DISTANCE = "angle", Choice("angle", "cosine", "euclidean", "re_ranked")
# nearest_query: take images nearer than this, in UDA.DISTANCE's unit | dbscan: radius of a neighbourhood, Jaccard,
# 0..1 | agglomerative: clusters whose images are this far apart on average stay apart, Jaccard, 0..1.
# 0 = not set: MODEL.THRESH for the angle, an error otherwise.
_C.UDA.THRESHOLD = 0.0, Float(0)
# k1, k2 and lambda of UDA.DISTANCE re_ranked; the Jaccard distance of clustering reads k1 and k2.
_C.UDA.RE_RANKING_PARAMETER = [14, 4, 0.4], K1_K2_LAMBDA
# True: queries nearer to each other than the threshold are the same identity (groups of them by their mean distance);
# False: each query is another identity (the lineage's).
_C.UDA.MERGE_QUERIES = True, Bool()
# dbscan: images, itself among them, within the radius of an image that makes a cluster grow.
_C.UDA.MIN_SAMPLES = 4, Int(2)
# Rounds of tools/train_UDA.py: label, then train; the next round labels with what the last one trained.
_C.UDA.ROUNDS = 1, Int(1)
# What a round's training starts from: labeller (the model that made the labels, and its classifier's rows of the
# identities that stay) | recipe (MODEL.PRETRAIN_CHOICE, as the lineage did).
_C.UDA.START = "labeller", Choice("labeller", "recipe")

# ---------------------------------------------------------------- other
# Folder for checkpoints, logs, features and results. "" = output/<name of the config file>.
_C.OUTPUT_DIR = "", Str(empty=True)



# ---------------------------------------------------------------- the tree and its rules

def _declarations() -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, default, rule) of every key, in the order of their declaration."""
    for name, entry in vars(_C).items():
        if isinstance(entry, SimpleNamespace):
            yield from ((f"{name}.{key}", *declaration) for key, declaration in vars(entry).items())
        else:
            yield name, *entry


RULES: dict[str, Any] = {key: rule for key, _, rule in _declarations()}
SECTIONS = tuple(dict.fromkeys(key.split(".")[0] for key in RULES if "." in key))
# Keys of the lineage that are still understood and do nothing, and why.
OBSOLETE: dict[str, str] = {key: rule.reason for key, rule in RULES.items() if isinstance(rule, Obsolete)}


def get_cfg_defaults() -> CfgNode:
    """A fresh, unfrozen tree of the default values."""
    return make_tree({key: rule.parse(default) for key, default, rule in _declarations()})


def make_tree(values: Mapping[str, Any]) -> CfgNode:
    """The tree of {dotted key: value}, in the order of the keys."""
    tree = CfgNode()
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, CfgNode()) if section else tree)[name] = value
    return tree
