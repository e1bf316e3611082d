"""Names that other tools use, and the names in ``tl``: tables and look-ups, without any parsing."""

from pathlib import PurePath

# Options whose value is an argument here: the first one (MODEL or RUN), or a later one.
FIRST, LATER = "FIRST", "LATER"
# An option without effect here: alone, or with a value.
DEFAULT, UNUSED = "", "UNUSED"
# By the name in tl: Ultralytics, timm's train.py, torchvision's references, Hugging Face, Lightning, Keras, fastai.
# "--flag" takes the value that follows; "--flag value" replaces a switch.
_SPELLINGS = {
    FIRST: "m model arch a architecture model-name model-name-or-path backbone network net run run-id",
    LATER: "source input image path file",
    "--accumulate": "grad-accum-steps gradient-accumulation-steps accumulate-grad-batches",
    "--auto-augment": "aa",
    "--auto-magnitude": "ra-magnitude",
    "--batch-size": "b bs batch train-batch-size per-device-train-batch-size",
    "--bn train": "train-bn",
    "--checkpoint-every": "save-steps save-period checkpoint-interval",
    "--class-weights": "class-weight",
    "--clip-norm": "clip-grad clip-grad-norm gradient-clip-val max-grad-norm clipnorm",
    "--config": "c cfg config-file",
    "--cutmix": "cutmix-alpha",
    "--data": "d dataset dataset-name data-path train-dir train-data root",
    "--data-dir": "download-dir cache-dir",
    "--device": "accelerator",
    "--device cpu": "cpu no-cuda no-gpu",
    "--device cuda": "cuda gpu",
    "--drop-path": "drop-path-rate stochastic-depth",
    "--dropout": "drop drop-rate",
    "--dry-run": "dryrun",
    "--early-stop": "patience early-stopping early-stopping-patience",
    "--ema": "model-ema-decay ema-decay",
    "--epochs": "e n-epochs num-epochs nb-epochs max-epochs num-train-epochs",
    "--experiment": "experiment-name project",
    "--format": "export-format",
    "--freeze-epochs": "freeze frozen-epochs",
    "--input-size": "imgsz img-size image-size img input-shape train-crop-size crop-size resolution",
    "--label-smoothing": "smoothing label-smoothing-factor",
    "--layer-decay": "layer-lr-decay",
    "--limit": "max-train-samples max-samples max-images",
    "--log-every": "log-interval logging-steps print-freq log-every-n-steps",
    "--lr": "learning-rate lr0 base-lr init-lr initial-lr lr-max head-lr lr-head",
    "--mixup": "mixup-alpha",
    "--optimizer": "opt optim",
    "--output": "o output-dir out save-dir",
    "--precision": "dtype",
    "--precision bf16": "bf16",
    "--precision fp16": "amp fp16 half mixed-precision use-amp",
    "--precision fp32": "no-amp",
    "--quiet": "silent no-verbose",
    "--random-erasing": "reprob random-erase erasing",
    "--recipe": "preset",
    "--resume": "r resume-from resume-from-checkpoint ckpt-path",
    "--run-name": "name",
    "--schedule": "sched scheduler lr-scheduler lr-scheduler-type lr-schedule",
    "--seed": "s random-seed random-state manual-seed",
    "--steps": "max-steps max-iter iterations num-steps",
    "--top": "topk top-k",
    "--tracking-uri": "backend-store-uri mlflow-uri mlflow-tracking-uri",
    "--unfreeze-lr": "lr-backbone backbone-lr lr-finetune finetune-lr fine-tune-lr",
    "--val-fraction": "valid-pct validation-split val-split val-size",
    "--version": "v",
    "--warmup": "warmup-ratio pct-start",
    "--weight-decay": "wd",
    "--weights": "w initial-checkpoint checkpoint checkpoint-path ckpt pretrained-weights",
    "--weights none": "no-pretrained from-scratch scratch",
    "--workers": "j num-workers nw",
    DEFAULT: "pretrained verbose shuffle save plots channels-last exist-ok",
    UNUSED: "num-classes nc task mode",
}
OPTIONS = {typed: meaning for meaning, spellings in _SPELLINGS.items() for typed in spellings.split()}

# By the command in tl and its options.
_WORDS = {
    "compare": "benchmark versus vs",
    "data": "datasets dataset",
    "data check": "check doctor",
    "eval": "evaluate val valid validate validation test score",
    "export": "convert onnx",
    "inspect": "summary info describe",
    "models": "zoo model",
    "models pull": "download fetch",
    "plot": "curves graph",
    "plot --follow": "follow watch tail monitor",
    "predict": "infer inference classify label",
    "runs": "run history log logs experiments",
    "runs list": "ls",
    "runs rm": "delete remove",
    "train": "fit finetune fine-tune fit-one-cycle learn start",
    "train --dry-run": "plan dry-run",
    "train --resume": "resume continue",
}
COMMANDS = {typed: meaning for meaning, words in _WORDS.items() for typed in words.split()}
# Commands for what MLflow shows, not tl.
SCREENS = ("ui", "dashboard", "tensorboard", "board", "mlflow", "server", "web", "gui")

WEIGHTS_ENDINGS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".onnx", ".h5", ".keras", ".pkl")
_KEPT = {"best": "best", "last": "latest", "latest": "latest"}


def setting(name: str) -> str | None:
    """Return the line of a config file for a name of another tool: "" if it is the default, None if unknown."""
    meaning = OPTIONS.get(name.replace("_", "-").lower())
    if meaning == FIRST:
        return "model"
    if meaning == DEFAULT:
        return ""
    if meaning is None or not meaning.startswith("--"):
        return None
    flag, _, value = meaning.removeprefix("--").partition(" ")
    return flag.replace("-", "_") + (f' = "{value}"' if value else "")


def kept_run(name: str) -> str | None:
    """Return the name of the run for a file of another tool, such as ``best.pt``."""
    path = PurePath(name)
    return _KEPT.get(path.stem.lower()) if path.suffix.lower() in WEIGHTS_ENDINGS else None
