"""The keys of MODEL, declared as configs/defaults.py says."""
from __future__ import annotations

from types import SimpleNamespace

from configs.rules import Bool, Choice, DeviceIds, Float, Int, ListOf, Obsolete, Row, Str

_C = SimpleNamespace(MODEL=SimpleNamespace())

# Device that computes: auto is CUDA if there is a device, else the CPU. The lineage's default was 'cuda'.
_C.MODEL.DEVICE = "auto", Choice("auto", "cuda", "cpu")
# CUDA device numbers, comma separated; several train with nn.DataParallel, a test takes the first. Ignored on the CPU,
# and under torchrun, which gives each process the device of its number.
_C.MODEL.DEVICE_ID = "0", DeviceIds()
# Backbone, a name of model.backbones.BACKBONES | timm:NAME, any network of the package timm | transformer, see
# TRANSFORMER_TYPE.
_C.MODEL.NAME = "resnet50", Str()
# Stride of the backbone's last stage: 1 (256x128 gives a 16x8 map) | 2 (8x4).
_C.MODEL.LAST_STRIDE = 1, Int(1, 2)
# File with the weights to start from; its format follows PRETRAIN_CHOICE. package:NAME = the file that an installed
# Python package carries; timm = timm downloads the weights of NAME timm:... itself. "" = none given.
_C.MODEL.PRETRAIN_PATH = "", Str(empty=True)
# imagenet: PRETRAIN_PATH holds the backbone's ImageNet weights | self: PRETRAIN_PATH holds a whole model trained here
# or by the lineage, of which all but the classifiers is taken | finetune: as self, and the rows of classifiers and
# class centres of all identities that the checkpoint knows by name | none: random weights.
_C.MODEL.PRETRAIN_CHOICE = "imagenet", Choice("imagenet", "self", "finetune", "none")
# Shell patterns of weights that PRETRAIN_PATH may lack or hold in excess, such as ['pcb.rpp.*']; all others must fit.
_C.MODEL.PRETRAIN_ALLOW = [], ListOf(Str(), unique=True)
# bnneck: batch norm between the metric feature and the classifier | no: none.
_C.MODEL.NECK = "bnneck", Choice("bnneck", "no")
# The lineage's second switch for the center loss; it must not contradict METRIC_LOSS_TYPE, which decides.
_C.MODEL.IF_WITH_CENTER = False, Bool()
# Metric loss beside the ID loss (pair_*: over the cosines of all pairs of a batch). Read when DATALOADER.SAMPLER has
# 'triplet' in it.
_C.MODEL.METRIC_LOSS_TYPE = "triplet", Choice(
    "triplet", "center", "triplet_center", "pair_cosface", "pair_circle", "triplet_pair_cosface", "triplet_pair_circle")
# True: soft margin log(1 + exp(d_ap - d_an)); False: relu(d_ap - d_an + SOLVER.MARGIN).
_C.MODEL.NO_MARGIN = False, Bool()
# True: cross entropy with label smoothing, epsilon 0.1.
_C.MODEL.IF_LABELSMOOTH = True, Bool()
_C.MODEL.COS_LAYER = False, Obsolete(Bool(), "MODEL.ID_LOSS_TYPE: arcface is what it stood for")
# Freeze the stem and the first n stages (weights and batch-norm statistics): 0 = the stem alone, -1 = nothing.
_C.MODEL.FROZEN = -1, Int(-1, 4)
# Epochs, counted from the first, in which the backbone does not learn (weights and statistics), the heads alone do.
_C.MODEL.FREEZE_EPOCHS = 0, Int(0)
# True: batch norms take their statistics over all processes of torchrun (CUDA only); False: over those of a process.
_C.MODEL.SYNC_BN = False, Bool()
# Shell patterns of the parameters that learn, such as ['pcb.rpp.*']: all others and their batch-norm statistics stay
# as they are. [] = all learn.
_C.MODEL.TRAIN_ONLY = [], ListOf(Str(), unique=True)
# True: channels last in memory (faster convolutions); False: NCHW. The results are the same up to rounding.
_C.MODEL.CHANNELS_LAST = True, Bool()
# True: torch.compile of the backbone (minutes at the start, a C++ compiler on the CPU).
_C.MODEL.COMPILE = False, Bool()
# Pooling of the last map; GeM is the generalised mean, clamp 1e-6; of transformers: token (the class token), GeM_token
# (GeM plus the class token), max, avg_max (mean of the maxima of each four positions).
_C.MODEL.POOLING_METHOD = "avg", Choice("avg", "GeM", "token", "GeM_token", "max", "avg_max")
# Between 0 (appearance) and 1 (semantics, as SOLIDER pretrains) for SOLIDER's Swin; its published re-ID results have
# 0.2. A negative number: without the layers that read it, for weights that have none.
_C.MODEL.SEMANTIC_WEIGHT = 1.0, Float(high=1)
# Exponent of GeM.
_C.MODEL.GEM_P = 3.0, Float(above=0)
# Width of the feature, such as 256 or 512: a linear layer and a batch norm (the BNNeck, or with NECK no one of its own)
# behind the pooling reduce the backbone's 2048; each part of JPM and PASS and the merged parts of PCB, too. 0 = as the
# pooling gives it. fast-reid's EMBEDDING_DIM.
_C.MODEL.EMBED_DIM = 0, Int(0)
# True: GeM's exponent is learned, at ten times the base lr and without decay; False: it stays GEM_P.
_C.MODEL.GEM_LEARN_P = False, Bool()
# Classifier of the ID loss: softmax (linear) | arcface | cosface | amsoftmax (cosface by another name) | circle.
_C.MODEL.ID_LOSS_TYPE = "softmax", Choice("softmax", "arcface", "cosface", "amsoftmax", "circle")
# Weight of the ID loss.
_C.MODEL.ID_LOSS_WEIGHT = 1.0, Float(0)
# Weight of the triplet loss.
_C.MODEL.TRIPLET_LOSS_WEIGHT = 1.0, Float(0)
# File of tools/learn_prompts.py with a text for each identity: CLIP-ReID's second stage. "" = without texts.
_C.MODEL.PROMPTS = "", Str(empty=True)
# Weight of the loss between images and the texts of PROMPTS.
_C.MODEL.I2T_LOSS_WEIGHT = 1.0, Float(0)
# Weight of the pairwise loss (METRIC_LOSS_TYPE pair_*).
_C.MODEL.PAIR_LOSS_WEIGHT = 1.0, Float(0)
# True: softmax-weighted triplet over all pairs of a batch; False: batch-hard triplet.
_C.MODEL.WEIGHTED_TRIPLET = False, Bool()
# The lineage's threshold of pseudo-labelling: an angle, radians. Read if UDA.DISTANCE is angle and UDA.THRESHOLD 0.
_C.MODEL.THRESH = 0.0, Float(0)
# True: part (PCB) heads: six stripes of the map with a classifier each, beside the global branch.
_C.MODEL.IF_USE_PCB = False, Bool()
# True: also a classifier on the six parts side by side, each times its gate (branch `merged`); False: no gates.
_C.MODEL.MERGE_PCB_FEAT = True, Bool()
# What bounds a part's gate: sigmoid | affine (nothing; the lineage's).
_C.MODEL.PCB_GATE = "sigmoid", Choice("sigmoid", "affine")
# True: refined part pooling: a learned part classifier instead of stripes (see configs/naic/r50_rpp_*.yml).
_C.MODEL.PCB_RPP = False, Bool()
# Weight of the mean of the parts' ID losses.
_C.MODEL.PCB_PART_LOSS_WEIGHT = 0.5, Float(0)
# Weight of the merged parts' ID loss.
_C.MODEL.PCB_MERGED_LOSS_WEIGHT = 0.5, Float(0)
# Weight of the local branch's ID loss (TEST.PCB_GLOBAL_FEAT_ENSEMBLE).
_C.MODEL.PCB_LOCAL_LOSS_WEIGHT = 0.5, Float(0)

# What follows is of transformers; the names are those of TransReID and its descendants, the misspelt one, too.
# The network if NAME is transformer, in their spelling, such as vit_base_patch16_224_TransReID.
_C.MODEL.TRANSFORMER_TYPE = "", Str(empty=True)
# Step from patch to patch in rows and columns, pixels; less than 16 lets patches overlap.
_C.MODEL.STRIDE_SIZE = [16, 16], Row({"rows": Int(1), "columns": Int(1)})
# True: the network of TRANSFORMER_TYPE has a convolutional stem (its name here ends in _ics).
_C.MODEL.STEM_CONV = False, Bool()
# Height / width of the grid of positions in PRETRAIN_PATH: 1 (ImageNet) | 2 (LUPerson: TransReID-SSL, PASS, PersonViT).
_C.MODEL.PRETRAIN_HW_RATIO = 1, Int(1, 4)
# Pooling if NAME is transformer (POOLING_METHOD is not read then): token (the class token) | gem (GeM plus the class
# token) | avg | max | avg_max.
_C.MODEL.POOLING = "token", Choice("token", "gem", "avg", "max", "avg_max")
# True: as POOLING gem.
_C.MODEL.GEM_POOLING = False, Bool()
# Of the last block the rate at which a sample skips it in training; it grows from 0 at the first.
_C.MODEL.DROP_PATH = 0.1, Float(0, 0.99)
# Rate at which numbers of tokens drop out in training.
_C.MODEL.DROP_OUT = 0.0, Float(0, 0.99)
# Rate at which attention weights drop out in training.
_C.MODEL.ATT_DROP_RATE = 0.0, Float(0, 0.99)
# True: blocks are computed a second time in the backward pass: less memory, the same numbers.
_C.MODEL.GRADIENT_CHECKPOINTING = False, Bool()
# True: a learned embedding of the camera is added to every token, in training and tests (side information).
_C.MODEL.SIE_CAMERA = False, Bool()
# True: likewise of the view.
_C.MODEL.SIE_VIEW = False, Bool()
# Factor on the side information.
_C.MODEL.SIE_COE = 3.0, Float(0)
# Cameras and views that the weights do not know, all of another set among them: mean (of those that they know) | none
# (nothing is added) | new (as mean; a training that starts from the weights gives them rows, which begin there).
_C.MODEL.SIE_OTHER = "mean", Choice("mean", "none", "new")
# True: the jigsaw patch module: parts of the shuffled patches with a classifier each, and in an embedding if
# TEST.USE_LOCAL.
_C.MODEL.JPM = False, Bool()
# True: the patches are shifted and shuffled before they are cut into parts.
_C.MODEL.RE_ARRANGE = True, Bool()
# The first n - 1 patches move to the end.
_C.MODEL.SHIFT_NUM = 5, Int(1)
# Pieces of the sequence that are interleaved.
_C.MODEL.SHUFFLE_GROUP = 2, Int(1)
# Parts.
_C.MODEL.DEVIDE_LENGTH = 4, Int(1)
# How PASS joins the class token and the mean of the part tokens: cat (side by side) | mean.
_C.MODEL.FEAT_FUSION = "cat", Choice("cat", "mean")
_C.MODEL.MULTI_NECK = True, Obsolete(Bool(), "each of PASS's tokens has a neck of its own, as in all its recipes")
_C.MODEL.DIST_TRAIN = False, Obsolete(Bool(), "torchrun starts several processes")
_C.MODEL.DROPOUT_RATE = 0.0, Obsolete(Float(), "no recipe has dropout behind the neck")
_C.MODEL.REDUCE_FEAT_DIM = False, Obsolete(Bool(), "MODEL.EMBED_DIM reduces the feature")
_C.MODEL.FEAT_DIM = 512, Obsolete(Int(), "MODEL.EMBED_DIM reduces the feature")

# ---------------------------------------------------------------- the section
MODEL = _C.MODEL
