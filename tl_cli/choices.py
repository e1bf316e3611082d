"""The choices of settings, as types, which the shell completes. Imports nothing slow, to keep completion fast."""

from typing import Literal

RecipeName = Literal["default", "fast", "head", "blog"]
# Classes of torch.optim in lower case. To add one, add its name, if it takes lr and weight_decay; the tests of
# training/test_fit.py take every name of this list.
OptimizerName = Literal["adam", "adamw", "sgd"]
ScheduleName = Literal["constant", "cosine", "one-cycle", "plateau"]
AugmentName = Literal["none", "shift", "flip", "flip-shift", "flip-crop", "blog"]
ResizeName = Literal["crop", "squash", "pad"]
AutoAugment = Literal["none", "randaugment", "trivialaugment"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16"]
Layout = Literal["channels-last", "contiguous", "images-last"]
FeatureDtype = Literal["fp16", "fp32"]
HeadName = Literal["new", "keep"]
HeadFeatures = Literal["last", "stages"]
HeadFitName = Literal["steps", "logistic"]
OnBadImage = Literal["error", "skip"]
ClassWeights = Literal["none", "balanced"]
SamplerName = Literal["shuffle", "balanced"]
KeepEpoch = Literal["best", "last"]
TtaName = Literal["none", "flip"]
BatchNormMode = Literal["frozen", "train"]
