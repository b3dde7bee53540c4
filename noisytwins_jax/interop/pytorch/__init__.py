"""The networks of this project in plain PyTorch, with the key names of public checkpoints.

Each module is one self-contained file that needs only PyTorch: copy it into a program, build a network with its
configuration, and load a checkpoint that this project exported, or a public one.

* `stylegan2`: StyleGAN2, as in NoisyTwins, PyTorch-StudioGAN and stylegan2-ada-pytorch.
* `biggan`: BigGAN and BigGAN-deep, as in BigGAN-PyTorch.

PyTorch is not a requirement of this project; nothing else in it imports these modules.
"""
