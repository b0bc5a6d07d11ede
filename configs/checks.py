"""What goes across keys: combinations that cannot work, and those that are probably not meant."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from configs.defaults import OBSOLETE, RULES

Values = Mapping[str, Any]


def batch_problem(v: Values, processes: int = 1) -> str:
    """Why a training batch cannot be divided, and the nearest sizes that can; "" if it can.

    A batch has SOLVER.ACCUMULATION_STEPS micro-batches, and each of `processes` takes the same share of every one:
    whole groups of DATALOADER.NUM_INSTANCE images of an identity, single images with SAMPLER softmax. A micro-batch
    has two groups at least, from all processes together because metric losses compare identities over all of them, and
    a share two images, because batch norms take statistics of them. For example 2 processes and 2 steps with groups of
    4 images: multiples of 16.
    """
    grouped = "triplet" in v["DATALOADER.SAMPLER"]
    batch, steps = v["SOLVER.IMS_PER_BATCH"], v["SOLVER.ACCUMULATION_STEPS"]
    group = v["DATALOADER.NUM_INSTANCE"] if grouped else 1
    unit = group * steps * processes
    least = unit if grouped and processes > 1 else 2 * unit
    factors = [f"DATALOADER.NUM_INSTANCE={group}"] * grouped + [f"SOLVER.ACCUMULATION_STEPS={steps}"] * (steps > 1)
    by = " x ".join(factors + [f"{processes} processes"] * (processes > 1)) or "1 process"
    if batch < least:
        needed = "2 identities, and 1 a process" if grouped else "2 images a process"
        return (f"SOLVER.IMS_PER_BATCH={batch} is too small for {by}: a micro-batch has {needed} at least; "
                f"use {least} or more")
    lower = batch // unit * unit
    if lower != batch:
        return f"SOLVER.IMS_PER_BATCH={batch} is not divisible by {by}; use {lower} or {lower + unit}"
    return ""


def _check_batch(v: Values) -> Iterator[str]:
    """A P x K batch has positive pairs, and a batch can be divided; how many processes share it is known at the start.

    Without groups and micro-batches any size will do: a config that only tests need not fit a training.
    """
    if "triplet" in v["DATALOADER.SAMPLER"] and v["DATALOADER.NUM_INSTANCE"] < 2:
        yield (f"DATALOADER.NUM_INSTANCE={v['DATALOADER.NUM_INSTANCE']} leaves no positive pairs for "
               f"DATALOADER.SAMPLER={v['DATALOADER.SAMPLER']}; use 2 or more")
    elif "triplet" in v["DATALOADER.SAMPLER"] or v["SOLVER.ACCUMULATION_STEPS"] > 1:
        problem = batch_problem(v)
        if problem:
            yield problem


def _check_balance(v: Values) -> Iterator[str]:
    """Sets are balanced by their identities in P x K batches, and a set has one share."""
    if v["DATALOADER.BALANCE_SETS"] and "triplet" not in v["DATALOADER.SAMPLER"]:
        yield (f"DATALOADER.BALANCE_SETS=True chooses identities, but DATALOADER.SAMPLER={v['DATALOADER.SAMPLER']} "
               "shuffles images; use softmax_triplet or triplet, or False")
    names = [text.rsplit(":", 1)[0] for text in v["DATALOADER.SET_SHARES"]]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"DATALOADER.SET_SHARES: {name} has {names.count(name)} shares; use one"


def _check_training(v: Values) -> Iterator[str]:
    """Keys of the engine that cannot go together."""
    if v["SOLVER.AMP_BACKEND"] == "apex" and v["SOLVER.AMP_DTYPE"] == "bfloat16":
        yield "SOLVER.AMP_DTYPE=bfloat16: SOLVER.AMP_BACKEND=apex computes in float16 only; use torch"
    if v["MODEL.SYNC_BN"] and v["MODEL.DEVICE"] == "cpu":
        yield "MODEL.SYNC_BN=True: torch's synchronised batch norm runs on CUDA devices only, not with MODEL.DEVICE=cpu"
    if v["MODEL.FREEZE_EPOCHS"] >= v["SOLVER.MAX_EPOCHS"]:
        yield (f"MODEL.FREEZE_EPOCHS={v['MODEL.FREEZE_EPOCHS']} leaves no epoch of SOLVER.MAX_EPOCHS="
               f"{v['SOLVER.MAX_EPOCHS']} for the backbone; use fewer, or MODEL.FROZEN to freeze it for good")
    if v["SOLVER.EMA_DECAY"] == 1:
        yield "SOLVER.EMA_DECAY=1.0 never takes in a weight; use less, such as 0.999, or 0 for no average"


def _check_distillation(v: Values) -> Iterator[str]:
    if v["SOLVER.DISTILL_FROM"] and v["SOLVER.DISTILL_WEIGHT"] == 0:
        yield (f"SOLVER.DISTILL_WEIGHT=0.0 switches off what SOLVER.DISTILL_FROM={v['SOLVER.DISTILL_FROM']} teaches; "
               "use a weight > 0, or no teacher")


def _check_center(v: Values) -> Iterator[str]:
    """The two switches of the center loss agree, and its weight is not zero if it is used."""
    has_center = "center" in v["MODEL.METRIC_LOSS_TYPE"]
    if v["MODEL.IF_WITH_CENTER"] and not has_center:
        yield (f"MODEL.IF_WITH_CENTER=True contradicts MODEL.METRIC_LOSS_TYPE={v['MODEL.METRIC_LOSS_TYPE']}; "
               "use center or triplet_center, or IF_WITH_CENTER False")
    if has_center and "triplet" in v["DATALOADER.SAMPLER"] and v["SOLVER.CENTER_LOSS_WEIGHT"] == 0:
        yield (f"SOLVER.CENTER_LOSS_WEIGHT=0.0 switches off the center loss that MODEL.METRIC_LOSS_TYPE="
               f"{v['MODEL.METRIC_LOSS_TYPE']} asks for; use a weight > 0, or triplet")
    if v["DATALOADER.SAMPLER"] == "triplet" and v["MODEL.METRIC_LOSS_TYPE"] == "center":
        yield ("DATALOADER.SAMPLER=triplet with MODEL.METRIC_LOSS_TYPE=center: a center loss alone draws all features "
               "to one point; use SAMPLER softmax_triplet, or METRIC_LOSS_TYPE triplet_center")


def _check_parts(v: Values) -> Iterator[str]:
    """Part heads learn from ID losses, and what is tested must have been trained."""
    if not v["MODEL.IF_USE_PCB"]:
        if v["MODEL.PCB_RPP"]:
            yield "MODEL.PCB_RPP=True refines the parts of MODEL.IF_USE_PCB, which is False; use True there"
        return
    if v["DATALOADER.SAMPLER"] == "triplet":
        yield ("MODEL.IF_USE_PCB=True with DATALOADER.SAMPLER=triplet: part heads are trained by ID losses alone; use "
               "softmax_triplet or softmax")
    if not v["MODEL.MERGE_PCB_FEAT"]:
        if v["TEST.USE_PCB_MERGE_FEAT"] and not v["TEST.PCB_GLOBAL_FEAT_ENSEMBLE"]:
            yield ("TEST.USE_PCB_MERGE_FEAT=True tests the merged parts, which MODEL.MERGE_PCB_FEAT=False does not "
                   "train; set one of them to the other")
        if v["TEST.PCB_PART_FEAT"] == "weighted":
            yield ("TEST.PCB_PART_FEAT=weighted needs the gates, which MODEL.MERGE_PCB_FEAT=False does not train; "
                   "use plain")


def _check_pooling(v: Values) -> Iterator[str]:
    if v["MODEL.GEM_LEARN_P"] and "GeM" not in v["MODEL.POOLING_METHOD"]:
        yield (f"MODEL.GEM_LEARN_P=True has no exponent to learn with MODEL.POOLING_METHOD="
               f"{v['MODEL.POOLING_METHOD']}; use GeM")


def _check_reduction(v: Values) -> Iterator[str]:
    """A feature's place among texts is its last numbers, as the backbone gives them."""
    if v["MODEL.EMBED_DIM"] and v["MODEL.PROMPTS"]:
        yield (f"MODEL.EMBED_DIM={v['MODEL.EMBED_DIM']} reduces what MODEL.PROMPTS={v['MODEL.PROMPTS']} compares with "
               "texts; use 0, or no texts")


def _check_cosine_schedule(v: Values) -> Iterator[str]:
    """The cosine runs over the epochs after the warm-up, downwards."""
    if v["SOLVER.LR_SCHEDULER"] != "cosine":
        return
    if v["SOLVER.WARMUP_EPOCHS"] >= v["SOLVER.MAX_EPOCHS"]:
        yield (f"SOLVER.WARMUP_EPOCHS={v['SOLVER.WARMUP_EPOCHS']} leaves no epoch for the cosine of "
               f"SOLVER.MAX_EPOCHS={v['SOLVER.MAX_EPOCHS']}; use fewer")
    if v["SOLVER.MIN_LR"] > v["SOLVER.BASE_LR"]:
        yield (f"SOLVER.MIN_LR={v['SOLVER.MIN_LR']} is above SOLVER.BASE_LR={v['SOLVER.BASE_LR']}; "
               "the cosine falls from BASE_LR to MIN_LR")


def _check_optimizer(v: Values) -> Iterator[str]:
    """A switch of an optimiser is not given to another, which would ignore it."""
    name = v["SOLVER.OPTIMIZER_NAME"]
    if v["SOLVER.NESTEROV"] and name != "SGD":
        yield f"SOLVER.NESTEROV=True: SOLVER.OPTIMIZER_NAME={name} has no Nesterov momentum; use SGD"
    if v["SOLVER.NESTEROV"] and v["SOLVER.MOMENTUM"] == 0:
        yield "SOLVER.NESTEROV=True needs SOLVER.MOMENTUM > 0"
    if v["SOLVER.GRADIENT_CENTRALIZATION"] and name != "Ranger":
        yield f"SOLVER.GRADIENT_CENTRALIZATION=True: SOLVER.OPTIMIZER_NAME={name} does not do it; use Ranger"


def _check_re_ranking(v: Values) -> Iterator[str]:
    """Query expansion averages over the first k2 of the k1 neighbours and the image itself."""
    for key, read in (("TEST.RE_RANKING_PARAMETER", v["TEST.RE_RANKING"]), ("UDA.RE_RANKING_PARAMETER", True)):
        k1, k2, _ = v[key]
        if read and k2 > k1 + 1:
            yield f"{key}: k2={k2} is above k1+1={k1 + 1}, the image and its k1 neighbours; use a smaller k2"


def _check_expansion(v: Values) -> Iterator[str]:
    """An average is a direction: its length says how well its features agree, not what they look like."""
    for key in ("TEST.QUERY_EXPANSION", "TEST.DATABASE_AUGMENTATION"):
        if v[key] and not v["TEST.FEAT_NORM"]:
            yield (f"{key}={v[key]} makes features of length 1, which cannot be compared with the others' lengths "
                   "under TEST.FEAT_NORM=False; use True there")


def _check_padding(v: Values) -> Iterator[str]:
    height, width = v["INPUT.SIZE_TRAIN"]
    if v["INPUT.PADDING"] >= min(height, width):
        yield (f"INPUT.PADDING={v['INPUT.PADDING']} is not smaller than INPUT.SIZE_TRAIN=[{height}, {width}]: "
               "a crop could miss the image; use less")


# The largest value of a distance of pseudo-labelling, and its name in a message.
_LARGEST = {"angle": (math.pi, "pi, the largest angle (it is in radians)"), "cosine": (2.0, "2, the largest 1 - cos"),
            "re_ranked": (1.0, "1, the largest re-ranked distance"), "euclidean": (math.inf, "")}


def _check_pseudo_labels(v: Values) -> Iterator[str]:
    """A threshold beyond the range of its distance takes every image."""
    clusters, threshold = v["UDA.METHOD"] != "nearest_query", v["UDA.THRESHOLD"]
    key = "UDA.THRESHOLD" if threshold or clusters or v["UDA.DISTANCE"] != "angle" else "MODEL.THRESH"
    if clusters and threshold >= 1:
        yield (f"UDA.THRESHOLD={threshold} with UDA.METHOD={v['UDA.METHOD']}: 1 is the Jaccard distance of images that "
               "share no neighbour; use less")
    elif not clusters and v[key] > _LARGEST[v["UDA.DISTANCE"]][0]:
        yield f"{key}={v[key]} is above {_LARGEST[v['UDA.DISTANCE']][1]}: every image would be taken; use less"


def _check_validation(v: Values) -> Iterator[str]:
    """An evaluation measures on one thing."""
    if v["DATASETS.VALIDATION"] and v["DATASETS.TEST_NAMES"]:
        yield (f"DATASETS.TEST_NAMES={v['DATASETS.TEST_NAMES']} is not measured on while DATASETS.VALIDATION="
               f"{v['DATASETS.VALIDATION']} is set; set one of them to ''")


CHECKS: tuple[Callable[[Values], Iterator[str]], ...] = (
    _check_batch, _check_balance, _check_training, _check_distillation, _check_center, _check_parts,
    _check_pooling, _check_reduction, _check_cosine_schedule, _check_optimizer, _check_re_ranking, _check_expansion,
    _check_padding, _check_validation, _check_pseudo_labels,
)


def cross_problems(values: Values) -> list[str]:
    """What does not fit together among the values: a message each.

    Args:
        values: {dotted key: value}, each as `coerce` returns it. A check that needs a key that is not there (its
            value was refused) is left out.
    """
    problems = []
    for check in CHECKS:
        try:
            problems.extend(check(values))
        except KeyError as missing:
            if missing.args[0] not in RULES:
                raise  # a check misspells a key: our mistake
    return problems


def remarks(values: Values, origins: Mapping[str, str]) -> list[str]:
    """What works but is probably not meant: one text for all obsolete keys, one for each value that nothing reads.

    Args:
        values: {dotted key: value} for every key.
        origins: {dotted key: the file or command line that set it}.
    """
    texts = []
    obsolete = [f"{key} in {origins[key]} ({reason})" for key, reason in OBSOLETE.items() if key in origins]
    if obsolete:
        texts.append("obsolete keys, without effect: " + "; ".join(obsolete))
    names = values["DATASETS.NAMES"]
    if values["DATASETS.TRAIN_SETS"] and "naic" not in names.replace(" ", "").split("+"):
        texts.append(f"DATASETS.TRAIN_SETS={values['DATASETS.TRAIN_SETS']} is about naic, which is not among "
                     f"DATASETS.NAMES={names}")
    epochs = values["SOLVER.MAX_EPOCHS"]
    late = [step for step in values["SOLVER.STEPS"] if step >= epochs]
    if late and values["SOLVER.LR_SCHEDULER"] == "multistep":
        texts.append(f"SOLVER.STEPS: {late} never come, SOLVER.MAX_EPOCHS is {epochs}")
    if values["TEST.EXPANSION_ALPHA"] and not (values["TEST.QUERY_EXPANSION"] or values["TEST.DATABASE_AUGMENTATION"]):
        texts.append(f"TEST.EXPANSION_ALPHA={values['TEST.EXPANSION_ALPHA']} weighs nothing: TEST.QUERY_EXPANSION and "
                     "TEST.DATABASE_AUGMENTATION are 0")
    if values["DATALOADER.SET_SHARES"] and not values["DATALOADER.BALANCE_SETS"]:
        texts.append(f"DATALOADER.SET_SHARES={values['DATALOADER.SET_SHARES']} is not read: "
                     "DATALOADER.BALANCE_SETS is False")
    if "MODEL.THRESH" in origins and values["MODEL.THRESH"]:
        nearest, distance = values["UDA.METHOD"] == "nearest_query", values["UDA.DISTANCE"]
        if not nearest or distance != "angle" or values["UDA.THRESHOLD"]:
            texts.append(f"MODEL.THRESH={values['MODEL.THRESH']} is not read: UDA.THRESHOLD is the threshold of "
                         f"UDA.METHOD={values['UDA.METHOD']}" + f" with UDA.DISTANCE={distance}" * nearest)
    return texts
