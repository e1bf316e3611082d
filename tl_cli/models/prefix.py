"""How timm's architectures are told from torchvision's of the same name."""

PREFIX = "timm/"
